package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// disaster is a cluster that a test loses, and what it knew of it.
type disaster struct {
	*fleet
	t   *testing.T
	env map[string]string
}

func (d *disaster) run(want int, args ...string) result {
	d.t.Helper()
	r := runBaton(d.env, "", args...)
	if r.code != want {
		d.t.Fatalf("baton %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, want, r.stdout, r.stderr)
	}
	return r
}

func (d *disaster) number(fields map[string]any, path ...string) uint64 {
	d.t.Helper()
	for _, key := range path[:len(path)-1] {
		fields = fields[key].(map[string]any)
	}
	return uint64(fields[path[len(path)-1]].(float64))
}

// alone starts a node, after all others were lost, and waits until it serves.
func (d *disaster) alone(n *fleetNode) baton.NodeStatus {
	d.t.Helper()
	for _, o := range d.nodes {
		d.setAway(o.name, o != n)
	}
	d.env["BATON_ADDR"] = n.mgmt
	if err := d.startNode(n); err != nil {
		d.t.Fatal(err)
	}
	return d.awaitNode(d.t, n.name, "a voter that serves", func(s baton.NodeStatus) bool {
		return s.Reachable && s.Voter && s.State == "active"
	})
}

func (d *disaster) data(n *fleetNode) string { return filepath.Join(d.dir, n.name) }

// TestLostQuorum: a cluster is lost. Of one survivor a new one is made, which has
// all that was acknowledged, higher epochs and an identity of its own, and which
// others join once they are wiped, and not before. Then all is lost, and a backup
// makes another new one.
func TestLostQuorum(t *testing.T) {
	f := testCluster(t)
	d := &disaster{f, t, map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}}
	d.env["BATON_SECRET"] = d.run(exitOK, "session", "open", "--id", "cart", "--json").fields(t)["secret"].(string)
	d.run(exitOK, "session", "put", "cart", "colour", "red")
	backup := filepath.Join(d.dir, "sessions.snap")
	saved := d.run(exitOK, "snapshot", "save", backup, "--json").fields(t)
	if again := d.run(exitOK, "snapshot", "inspect", backup, "--json").fields(t); again["state_hash"] != saved["state_hash"] || d.number(again, "sessions") != 1 {
		t.Errorf("the backup holds %v, it was saved as %v", again, saved)
	}
	d.run(exitOK, "session", "put", "cart", "colour", "blue")
	before := d.run(exitOK, "status", "--json").fields(t)

	for _, n := range d.nodes {
		n.proc.kill()
	}
	survivor := slices.MaxFunc(d.nodes, func(a, b *fleetNode) int { return int(d.held(a)) - int(d.held(b)) })
	d.run(exitOK, "recover", "--data", d.data(survivor), "--yes")
	d.alone(survivor)
	got := d.run(exitOK, "session", "get", "cart", "colour", "--json").fields(t)
	after := d.run(exitOK, "status", "--json").fields(t)
	if got["value"] != "blue" || d.number(got, "epoch") <= d.number(before, "epoch")+1<<31 || after["cluster_id"] == before["cluster_id"] {
		t.Errorf("after the recovery: %v, %v; it was %v", got, after, before)
	}
	d.rejoin(survivor)

	for _, n := range d.nodes {
		n.proc.kill()
	}
	first := d.nodes[0]
	restore := []string{"snapshot", "restore", backup, "--name", first.name, "--data", d.data(first), "--mgmt-addr", first.mgmt,
		"--epoch-floor", strconv.FormatUint(d.number(after, "epoch"), 10), "--json"}
	if e := d.run(exitRefused, restore...).fields(t)["error"].(map[string]any); e["code"] != "bad_request" {
		t.Errorf("over a directory that is not empty: %v", e)
	}
	if err := os.RemoveAll(d.data(first)); err != nil {
		t.Fatal(err)
	}
	d.run(exitOK, restore...)
	d.alone(first)
	last := d.run(exitOK, "session", "get", "cart", "colour", "--json").fields(t)
	restored := d.run(exitOK, "status", "--json").fields(t)
	if last["value"] != "red" || d.number(last, "epoch") <= d.number(after, "epoch")+1<<31 ||
		restored["cluster_id"] == before["cluster_id"] || restored["cluster_id"] == after["cluster_id"] {
		t.Errorf("after the restore: %v, %v", last, restored)
	}
	d.run(exitOK, "verify")
}

// held is the index of what a stopped node's directory holds. Nothing is changed
// by looking.
func (d *disaster) held(n *fleetNode) uint64 {
	d.t.Helper()
	return d.number(d.run(exitFailed, "recover", "--data", d.data(n), "--json").fields(d.t), "before", "index")
}

// rejoin starts another node on what it holds of the former cluster, which keeps
// it out, and wiped, as a new node.
func (d *disaster) rejoin(survivor *fleetNode) {
	d.t.Helper()
	other := d.nodes[slices.IndexFunc(d.nodes, func(n *fleetNode) bool { return n != survivor })]
	if err := d.startNode(other); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-other.proc.done:
	case <-time.After(restartTime):
		d.t.Fatalf("a node of the former cluster runs on beside the new one: %s", other.proc.tail(20))
	}
	if said := other.proc.tail(5); !strings.Contains(said, "wrong_cluster") {
		d.t.Errorf("the former cluster's node ended with: %s", said)
	}
	if err := os.RemoveAll(d.data(other)); err != nil {
		d.t.Fatal(err)
	}
	if err := d.startNode(other); err != nil {
		d.t.Fatal(err)
	}
	d.setAway(other.name, false)
	d.awaitNode(d.t, other.name, "it votes", func(s baton.NodeStatus) bool { return s.Reachable && s.Voter && s.State == "active" })
	d.run(exitOK, "verify")
}

// TestBadBackups: what is no backup, or a damaged one, is told from a good one,
// and restores nothing.
func TestBadBackups(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.snap")
	if err := os.WriteFile(bad, []byte("BATONSNP nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	pki := filepath.Join(dir, "pki")
	for _, err := range []error{baton.PKIInit(pki), baton.PKIIssue(pki, "n1", []string{fleetHost})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"snapshot", "inspect", bad},
		{"snapshot", "restore", bad, "--name", "n1", "--data", filepath.Join(dir, "n1"), "--mgmt-addr", "127.0.0.1:1", "--epoch-floor", "0", "--pki", pki},
	} {
		r := runBaton(nil, "", append(args, "--json")...)
		if e, _ := r.fields(t)["error"].(map[string]any); r.code != exitRefused || e["code"] != "snapshot_bad" {
			t.Errorf("baton %s: %d, %s", strings.Join(args, " "), r.code, r.stdout)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "n1")); err == nil {
		t.Error("a bad backup has made a data directory")
	}
	if r := runBaton(nil, "", "recover", "--data", filepath.Join(dir, "empty"), "--pki", pki, "--yes", "--json"); r.code != exitRefused {
		t.Errorf("recovering nothing: %d, %s", r.code, r.stdout)
	}
}
