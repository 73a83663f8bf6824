// Package forward is what the modes have in common on a write's way to the node
// that takes it: what is refused at once, which errors another try can mend, and
// what an error says of the write's outcome. A write is done, failed or unknown;
// here is decided which of the last two an error means.
package forward
