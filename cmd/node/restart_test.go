package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// restartTime bounds one step of these tests; it only ends one that hangs.
const restartTime = time.Minute

// nodeStatus waits until ok holds of what the cluster says of a node.
func (f *fleet) awaitNode(t *testing.T, name, what string, ok func(baton.NodeStatus) bool) baton.NodeStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), restartTime)
	defer cancel()
	var last baton.NodeStatus
	for ctx.Err() == nil {
		st, err := f.status(ctx)
		for _, n := range st.Nodes {
			if err == nil && n.Name == name {
				if last = n; ok(n) {
					return n
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("never: %s: %+v", what, last)
	return last
}

// incarnation is a node's present one.
func (f *fleet) incarnation(t *testing.T, name string) uint64 {
	t.Helper()
	return f.awaitNode(t, name, "known", func(baton.NodeStatus) bool { return true }).Incarnation
}

// copyOf makes a node that runs on a copy of another's data directory, at an
// address of its own.
func (f *fleet) copyOf(t *testing.T, n *fleetNode) *fleetNode {
	t.Helper()
	data := filepath.Join(f.dir, n.name)
	to := filepath.Join(t.TempDir(), n.name)
	if out, err := exec.Command("cp", "-a", data, to).CombinedOutput(); err != nil {
		t.Fatalf("copying: %v: %s", err, out)
	}
	ports, err := takePorts(0)
	if err != nil {
		t.Fatal(err)
	}
	c := &fleetNode{name: n.name, log: to + ".log", args: slices.Clone(n.args)}
	set := func(flag, value string) { c.args[slices.Index(c.args, flag)+1] = value }
	c.user, c.mgmt = hostPort(ports[0].user), hostPort(ports[0].mgmt)
	set("--data", to)
	set("--user-addr", c.user)
	set("--mgmt-addr", c.mgmt)
	return c
}

// TestRestartAfterKill: a node that is killed and started again takes over at
// once: its former incarnation is succeeded without having been fenced.
func TestRestartAfterKill(t *testing.T) {
	f := testCluster(t)
	for _, n := range f.nodes {
		before := f.incarnation(t, n.name)
		n.proc.kill()
		if err := f.startNode(n); err != nil {
			t.Fatal(err)
		}
		f.awaitNode(t, n.name, "a new incarnation", func(s baton.NodeStatus) bool {
			return s.Incarnation > before && s.Reachable && s.State == "active"
		})
		if log := n.proc.tail(50); strings.Contains(log, "waiting until it is fenced") {
			t.Errorf("%s waited for a fence: %s", n.name, log)
		}
	}
}

// TestCopyBesideItsOriginal: a process on a copy of a data directory stops, with
// a message that says so, and the original goes on as the incarnation it was.
func TestCopyBesideItsOriginal(t *testing.T) {
	f := testCluster(t)
	n := f.nodes[1]
	before := f.incarnation(t, n.name)
	c := f.copyOf(t, n)
	if err := f.startNode(c); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.proc.done:
	case <-time.After(restartTime):
		t.Fatalf("the copy runs: %s", c.proc.tail(20))
	}
	if said := c.proc.tail(5); !strings.Contains(said, "predecessor_alive") || !strings.Contains(said, "copy") {
		t.Errorf("the copy's last words: %s", said)
	}
	// It is found before it speaks to anybody in the original's name.
	if said := c.proc.tail(20); !strings.Contains(said, "looking for its original") || strings.Contains(said, "waiting until it is fenced") {
		t.Errorf("the copy did not look for its original first: %s", said)
	}
	if code := c.proc.cmd.ProcessState.ExitCode(); code != exitRefused {
		t.Errorf("the copy ended with %d", code)
	}
	if s := f.awaitNode(t, n.name, "active", func(s baton.NodeStatus) bool { return s.Reachable && s.State == "active" }); s.Incarnation != before {
		t.Errorf("the original is incarnation %d, it was %d", s.Incarnation, before)
	}
	if n.proc.ended() {
		t.Errorf("the original has ended: %s", n.proc.tail(5))
	}
}

// TestCopyAfterItsOriginal: once the original is dead, a copy waits until its
// incarnation is fenced, and takes its place. When the original comes back it
// stops, and of the two the copy lives on.
func TestCopyAfterItsOriginal(t *testing.T) {
	f := testCluster(t)
	n := f.nodes[2]
	before := f.incarnation(t, n.name)
	if err := n.proc.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.setAway(n.name, true)
	c := f.copyOf(t, n)
	if err := f.startNode(c); err != nil {
		t.Fatal(err)
	}
	defer c.proc.kill()
	after := f.awaitNode(t, n.name, "the copy serves", func(s baton.NodeStatus) bool {
		return s.Incarnation > before && s.Reachable && s.State == "active" && hostPort(s.Endpoint.MgmtPort) == c.mgmt
	})
	if log := c.proc.tail(50); !strings.Contains(log, "waiting until it is fenced") && !strings.Contains(log, "looking for its original") {
		t.Errorf("the copy did not wait: %s", log)
	}
	if err := n.proc.signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.proc.done:
	case <-time.After(restartTime):
		t.Fatalf("the original runs on beside its copy: %s", n.proc.tail(20))
	}
	if said := n.proc.tail(5); !strings.Contains(said, "copied") && !strings.Contains(said, "copy") {
		t.Errorf("the original's last words: %s", said)
	}
	if s := f.awaitNode(t, n.name, "active", func(s baton.NodeStatus) bool { return s.Reachable && s.State == "active" }); s.Incarnation != after.Incarnation {
		t.Errorf("the copy is incarnation %d, it was %d", s.Incarnation, after.Incarnation)
	}
}
