package main

import (
	"errors"
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

// own makes a name of this run's; names of network interfaces have at most 15
// bytes.
func own(name string) string { return fmt.Sprintf("%s%d", name, os.Getpid()%100000) }

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
	bridge := own("nornicbr")
	if runtime.GOOS != "linux" || os.Getuid() != 0 || command("ip", "link", "add", bridge, "type", "bridge") != nil {
		t.Log("no root or no network namespaces: nodes are not cut off, and no disk fills up")
		return threeProcesses(t)
	}
	t.Cleanup(func() { _ = command("ip", "link", "del", bridge) })
	network := fmt.Sprintf("10.%d.%d.", 200+os.Getpid()%50, os.Getpid()/50%250)
	err := errors.Join(command("ip", "addr", "add", network+"254/24", "dev", bridge), command("ip", "link", "set", bridge, "up"))
	var list []*process
	for i := range 3 {
		p := &process{t: t, namespace: own(fmt.Sprint("nornic", i, "x")), address: network + fmt.Sprint(i+1)}
		err = errors.Join(err, p.openNamespace(i, bridge))
		list = append(list, p)
	}
	if err != nil {
		t.Logf("no network namespaces, so nodes are not cut off: %v", err)
		return threeProcesses(t)
	}
	for i, p := range list {
		p.openDisk()
		p.configure(i, list)
		p.start()
	}
	whole(t, list)
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

// openNamespace gives the process a network namespace on the bridge.
func (p *process) openNamespace(i int, bridge string) error {
	ns, here, there := p.namespace, own(fmt.Sprint("nrh", i, "x")), own(fmt.Sprint("nrp", i, "x"))
	p.hostLink = here
	p.t.Cleanup(func() {
		_ = command("ip", "link", "del", here) // the namespace would take it along, but later
		_ = command("ip", "netns", "del", ns)
	})
	var err error
	for _, line := range []string{
		"netns add " + ns, "link add " + here + " type veth peer name " + there, "link set " + there + " netns " + ns,
		"link set " + here + " master " + bridge, "link set " + here + " up",
		"-n " + ns + " addr add " + p.address + "/24 dev " + there, "-n " + ns + " link set " + there + " up", "-n " + ns + " link set lo up",
	} {
		err = errors.Join(err, command("ip", strings.Fields(line)...))
	}
	return err
}

func (p *process) openDisk() {
	p.data = p.t.TempDir()
	if command("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", p.data) == nil {
		p.small = true
		p.t.Cleanup(func() { _ = command("umount", "-l", p.data) })
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
