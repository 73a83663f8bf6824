// Package transport is the cluster protocol on port 7688: length-prefixed JSON
// frames, the handshake that proves who speaks, records that detect or
// authenticate every byte where TLS is off, and raw streams for
// hashicorp/raft, all on one listener.
//
// A Transport is a replication.Transport and a replication.Mux. DESIGN.md
// beside this file says what each mechanism is for and what it withstands.
package transport
