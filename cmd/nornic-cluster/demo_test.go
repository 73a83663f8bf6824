package main

import (
	"context"
	"log/slog"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// takenPort is held by somebody else until the test ends.
func takenPort(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", freeAddrs(t, 1)[0])
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	_, port, err = net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

// TestDemoNamesTheTakenPort: before anything is started.
func TestDemoNamesTheTakenPort(t *testing.T) {
	for flag, other := range map[string]string{"cluster-port": "http-port", "http-port": "cluster-port"} {
		port := takenPort(t)
		out, errs, status := runCommand(t, "demo", "--"+flag, port, "--"+other, "0")
		require.Equal(t, 1, status, errs)
		require.Contains(t, errs, "--"+flag+": listen tcp 127.0.0.1:"+port+": bind: address already in use")
		require.Empty(t, out, "no node was opened")
	}
	_, errs, status := runCommand(t, "demo", "--http-port", "17474", "--cluster-port", "17472")
	require.Equal(t, 2, status, errs)
	require.Contains(t, errs, "--http-port=17474 and --cluster-port=17472")
}

// TestDemoEndsWithTheNodeThatCannotStart: the others would wait for it.
func TestDemoEndsWithTheNodeThatCannotStart(t *testing.T) {
	addrs := append(freeAddrs(t, demoNodes-1), "127.0.0.1:"+takenPort(t))
	var nodes []*node
	defer func() { require.NoError(t, eachNode(nodes, (*node).stop)) }()
	dir := t.TempDir()
	for i := range addrs {
		n, err := openNode(demoConfig(i, addrs, dir), "127.0.0.1:0", slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		nodes = append(nodes, n)
	}
	err := startAll(t.Context(), nodes)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, addrs[demoNodes-1])
	require.NotErrorIs(t, err, context.DeadlineExceeded, "nobody waited")
}
