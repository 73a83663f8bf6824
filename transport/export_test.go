package transport

// SkipChecksums makes a mutant of a transport.
func SkipChecksums(o *Options) { o.skipsChecksums = true }
