package raftnode

import (
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// incoming passes a transport's requests on to Raft, with two corrections.
//
// A snapshot that is older than this node's log is answered here. hashicorp/raft
// would set the index up to which it has applied back to it, look for the entries
// behind it, which this log no longer has, and panic.
//
// hashicorp/raft checks the entry before a request's first one by looking it up
// in its log. Where that entry is the last of a snapshot and the log goes on
// behind it, there is nothing to find, and the request is refused although it
// fits. The leader then goes back, finds that entry in no log either, sends the
// snapshot, which changes nothing, and begins again: the follower is stuck until
// it is restarted. (A leader goes back one entry with every request that a
// follower's full disk refuses, so this happens. In a log founded by a snapshot
// the first entry is such a place.)
//
// What a log no longer holds is in a snapshot, so it is committed, so every
// leader has the same (Raft paper, section 5.4). A request that begins there
// needs no look-up: its entries that the snapshot covers are left out, and it
// becomes one that has nothing before it.
type incoming struct {
	first func() (uint64, error) // index of the log's first entry; 0: it is empty
	in    <-chan raft.RPC
	out   chan raft.RPC
	done  chan struct{}
}

func (i *incoming) run() {
	var drains sync.WaitGroup
	defer drains.Wait() // they end with their connections
	for {
		select {
		case rpc := <-i.in:
			if i.stale(&rpc) {
				drains.Go(func() { confirm(&rpc) })
				continue
			}
			i.correct(&rpc)
			select {
			case i.out <- rpc:
			case <-i.done:
				return
			}
		case <-i.done:
			return
		}
	}
}

// stale: the request brings a snapshot that ends before this node's log begins.
// What the log no longer holds was committed and is in a snapshot here.
func (i *incoming) stale(rpc *raft.RPC) bool {
	request, ok := rpc.Command.(*raft.InstallSnapshotRequest)
	if !ok {
		return false
	}
	first, err := i.first()
	return err == nil && request.LastLogIndex+1 < first
}

// confirm answers for a snapshot that is not needed, after reading it, as more
// follows on its connection.
func confirm(rpc *raft.RPC) {
	request := rpc.Command.(*raft.InstallSnapshotRequest)
	_, err := io.Copy(io.Discard, rpc.Reader)
	rpc.Respond(&raft.InstallSnapshotResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: request.Term, Success: err == nil}, err)
}

func (i *incoming) correct(rpc *raft.RPC) {
	request, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if !ok || request.PrevLogEntry == 0 {
		return
	}
	first, err := i.first()
	if err != nil || request.PrevLogEntry >= first {
		return // Raft meets the error itself, or finds the entry
	}
	fits := *request // the sender may still use its own
	fits.PrevLogEntry, fits.PrevLogTerm = 0, 0
	for len(fits.Entries) > 0 && fits.Entries[0].Index < first {
		fits.Entries = fits.Entries[1:]
	}
	rpc.Command = &fits
}
