package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// further makes one more node of the fleet, and starts it.
func (f *fleet) further(t *testing.T, name string, flags ...string) *fleetNode {
	t.Helper()
	if err := baton.PKIIssue(f.pki, name, []string{fleetHost}); err != nil {
		t.Fatal(err)
	}
	ports, err := takePorts(0)
	if err != nil {
		t.Fatal(err)
	}
	n := &fleetNode{name: name, user: hostPort(ports[0].user), mgmt: hostPort(ports[0].mgmt), log: filepath.Join(f.dir, name+".log")}
	n.args = append([]string{
		"start", "--name", name, "--data", filepath.Join(f.dir, name), "--user-addr", n.user, "--mgmt-addr", n.mgmt,
		"--pki", f.pki, "--join", strings.Join(f.mgmts(), ","), "--profile", "local",
	}, flags...)
	if err := f.startNode(n); err != nil {
		t.Fatal(err)
	}
	f.nodes = append(f.nodes, n)
	return n
}

// TestServersChange walks a node through its life as a server: a spare, a voter
// in another's place, gone for good.
func TestServersChange(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	run := func(want int, args ...string) result {
		t.Helper()
		r := runBaton(env, "", args...)
		if r.code != want {
			t.Fatalf("baton %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, want, r.stdout, r.stderr)
		}
		return r
	}
	refused := func(code string, args ...string) {
		t.Helper()
		if e := run(exitRefused, append(args, "--json")...).fields(t)["error"].(map[string]any); e["code"] != code {
			t.Errorf("baton %s: %v, want %s", strings.Join(args, " "), e, code)
		}
	}
	active := func(voter bool) func(baton.NodeStatus) bool {
		return func(n baton.NodeStatus) bool { return n.Reachable && n.State == "active" && n.Voter == voter }
	}
	// A node that has just registered has no lease for a moment, and does not count.
	status := func(quorum, tolerance int) {
		t.Helper()
		var st baton.Status
		var err error
		for limit := time.Now().Add(restartTime); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
			if st, err = f.status(t.Context()); err == nil && st.Quorum == quorum && st.FailureTolerance == tolerance {
				return
			}
		}
		t.Errorf("quorum %d, tolerance %d, want %d and %d (%v): %+v", st.Quorum, st.FailureTolerance, quorum, tolerance, err, st.Nodes)
	}

	f.further(t, "n4", "--target-voters", "3")
	f.awaitNode(t, "n4", "it follows", active(false))
	status(2, 1)
	leader := run(exitOK, "status", "--json").fields(t)["leader"].(string)
	victim := f.nodes[slices.IndexFunc(f.nodes, func(n *fleetNode) bool { return n.name != leader })]
	refused("bad_request", "raft", "remove", victim.name)
	refused("unknown_server", "raft", "promote", "nobody")
	changed := run(exitOK, "raft", "replace", victim.name, "--json").fields(t)
	if changed["node"] != victim.name || changed["heir"] != "n4" {
		t.Errorf("%v", changed)
	}
	f.awaitNode(t, "n4", "it votes", active(true))
	f.awaitNode(t, victim.name, "it follows", active(false))
	status(2, 1)
	run(exitOK, "raft", "promote", victim.name)
	status(3, 1)

	// A session of the node that leaves goes on elsewhere.
	opened := run(exitOK, "session", "open", "--id", "s", "--node", victim.name, "--json").fields(t)
	env["BATON_SECRET"] = opened["secret"].(string)
	run(exitOK, "session", "put", "s", "k", "v")
	run(exitOK, "leave", victim.name)
	select {
	case <-victim.proc.done:
	case <-time.After(restartTime):
		t.Fatalf("it does not stop: %s", victim.proc.tail(10))
	}
	if code := victim.proc.cmd.ProcessState.ExitCode(); code != exitOK {
		t.Errorf("it left with %d: %s", code, victim.proc.tail(5))
	}
	status(2, 1)
	if peers := run(exitOK, "raft", "peers").stdout; strings.Contains(peers, victim.name) {
		t.Errorf("it is still listed:\n%s", peers)
	}
	if got := run(exitOK, "session", "get", "s", "k", "--json").fields(t); got["value"] != "v" {
		t.Errorf("its session: %v", got)
	}
	if err := f.startNode(victim); err != nil {
		t.Fatal(err)
	}
	<-victim.proc.done
	if code := victim.proc.cmd.ProcessState.ExitCode(); code != exitRefused || !strings.Contains(victim.proc.tail(3), "id_used") {
		t.Errorf("a node that left starts: %d, %s", code, victim.proc.tail(3))
	}
}
