package testharness_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication/testharness"
)

// A test does this in a testing/synctest bubble, where the second takes no time.
func ExampleNetwork() {
	ctx := context.Background()
	n := testharness.NewNetwork(1)
	l, _ := n.Host("b").Listen(ctx, "b:7688")
	dialer, _ := n.Host("a").Dial(ctx, "b:7688")
	accepted, _ := l.Accept()

	n.Partition([]string{"a"}, []string{"b"})
	fmt.Fprint(dialer, "hello")
	_ = accepted.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := accepted.Read(make([]byte, 5))
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded))

	n.Heal()
	_ = accepted.SetReadDeadline(time.Time{})
	buf := make([]byte, 5)
	_, _ = accepted.Read(buf)
	fmt.Println(string(buf))
	// Output:
	// true
	// hello
}

func ExampleDisk() {
	d := testharness.NewDisk(1)
	log := d.OpenLog()
	_ = log.StoreLog(&raft.Log{Index: 1, Data: []byte("kept")})
	d.CrashAt(1, nil) // in the middle of the next write
	err := log.StoreLog(&raft.Log{Index: 2, Data: []byte("kept or lost")})
	fmt.Println(errors.Is(err, testharness.ErrCrashed))

	var entry raft.Log
	fmt.Println(d.OpenLog().GetLog(1, &entry), string(entry.Data))
	// Output:
	// true
	// <nil> kept
}
