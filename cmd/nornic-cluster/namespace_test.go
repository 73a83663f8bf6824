package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// bridge is the host's end of the network that isolated processes share.
const bridge = "nornictest0"

// command runs a command of the system.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// isolatedProcesses are three processes with a network namespace and a small
// disk each, where the test may make those; else three plain ones.
func isolatedProcesses(t *testing.T) []*process {
	t.Helper()
	if runtime.GOOS != "linux" || os.Getuid() != 0 || command("ip", "link", "add", bridge, "type", "bridge") != nil {
		t.Log("no root or no network namespaces: nodes are not cut off, and no disk fills up")
		return threeProcesses(t)
	}
	t.Cleanup(func() { require.NoError(t, command("ip", "link", "del", bridge)) })
	require.NoError(t, command("ip", "addr", "add", "10.231.77.254/24", "dev", bridge))
	require.NoError(t, command("ip", "link", "set", bridge, "up"))
	var list []*process
	for i := range 3 {
		p := &process{t: t, namespace: fmt.Sprint("nornictest", i), address: fmt.Sprintf("10.231.77.%d", i+1)}
		p.openNamespace(i)
		p.openDisk()
		list = append(list, p)
	}
	for i, p := range list {
		p.configure(i, list)
		p.start()
	}
	return list
}

// isolatedToken is the token of isolated processes, which do not serve on the
// loopback interface and so take no change without.
const isolatedToken = "0123456789abcdef"

// tokenSender sends it along with every request.
type tokenSender struct{ http.RoundTripper }

func (s tokenSender) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+isolatedToken)
	return s.RoundTripper.RoundTrip(r)
}

func (p *process) openNamespace(i int) {
	t, ns, here, there := p.t, p.namespace, fmt.Sprint("nornich", i), fmt.Sprint("nornicp", i)
	require.NoError(t, command("ip", "netns", "add", ns))
	t.Cleanup(func() { require.NoError(t, command("ip", "netns", "del", ns)) })
	p.hostLink = here
	for _, line := range []string{
		"link add " + here + " type veth peer name " + there, "link set " + there + " netns " + ns,
		"link set " + here + " master " + bridge, "link set " + here + " up",
		"-n " + ns + " addr add " + p.address + "/24 dev " + there, "-n " + ns + " link set " + there + " up", "-n " + ns + " link set lo up",
	} {
		require.NoError(t, command("ip", strings.Fields(line)...))
	}
}

func (p *process) openDisk() {
	p.data = p.t.TempDir()
	if command("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", p.data) == nil {
		p.small = true
		p.t.Cleanup(func() { require.NoError(p.t, command("umount", "-l", p.data)) })
	}
}

// configure makes p one of three.
func (p *process) configure(i int, list []*process) {
	const prefix = "NORNICDB_CLUSTER_"
	var peers []string
	for j, o := range list {
		if o != p {
			peers = append(peers, fmt.Sprintf("n%d:%s:7688", j, o.address))
		}
	}
	log, err := os.Create(filepath.Join(p.t.TempDir(), "log"))
	require.NoError(p.t, err)
	p.log, p.url = log, "http://"+p.address+":7474"
	p.args = []string{"serve", "--http", p.address + ":7474", "--data", p.data}
	p.env = []string{prefix + "MODE=raft", prefix + "NODE_ID=" + fmt.Sprint("n", i), prefix + "BIND_ADDR=" + p.address + ":7688",
		prefix + "RAFT_PEERS=" + strings.Join(peers, ","), prefix + "RAFT_BOOTSTRAP=" + fmt.Sprint(i == 0),
		prefix + "SECRET=0123456789abcdef", prefix + "RAFT_ELECTION_TIMEOUT=300ms", prefix + "RAFT_HEARTBEAT_TIMEOUT=30ms",
		prefix + "RAFT_LEADER_LEASE_TIMEOUT=150ms", "NORNIC_ADMIN_TOKEN=" + isolatedToken}
	p.t.Cleanup(func() {
		p.kill9()
		if p.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			p.t.Logf("%s:\n%s", p.url, text[max(0, len(text)-4000):])
		}
		_ = log.Close()
	})
}

// link cuts the process off from the others and from its clients, or connects
// it again.
func (p *process) link(t *testing.T, state string) {
	require.NoError(t, command("ip", "link", "set", p.hostLink, state))
}
