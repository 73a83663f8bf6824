// Package testchild runs a test binary as another process that takes orders, so
// that a test can measure what it takes or stop it.
package testchild

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Process reads an order a line and answers each with a line, one that contains
// "failed" if it could not obey. It takes one order at a time.
type Process struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

// Start runs the test binary with arguments and an environment added to this
// process's. It is killed at the test's end.
func Start(t testing.TB, args, env []string) *Process {
	t.Helper()
	p := &Process{t: t, cmd: exec.Command(os.Args[0], args...)}
	p.cmd.Env = append(os.Environ(), env...)
	in, err := p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.in, p.out = in, bufio.NewScanner(out)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // it was killed: that is its error
	})
	return p
}

// Tell gives an order and returns the answer.
func (p *Process) Tell(order string) string {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in, order)
	require.NoError(p.t, err)
	require.True(p.t, p.out.Scan(), order)
	require.NotContains(p.t, p.out.Text(), "failed", order)
	return p.out.Text()
}

// Signal sends the process a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// AnonKB is the process's anonymous memory in KiB: its heap, not the mapped
// graph. Linux only.
func (p *Process) AnonKB() int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	require.NoError(p.t, err)
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			require.NoError(p.t, err)
			return kb
		}
	}
	p.t.Fatal("no RssAnon")
	return 0
}
