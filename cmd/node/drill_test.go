package main

import (
	"strings"
	"testing"

	"github.com/baton-cluster/baton"
)

// A drill on a live cluster: refused unless it is meant and the cluster can bear
// it; else every session is served again, and nothing is lost.
func TestDrillKill(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	run := func(want int, args ...string) result {
		t.Helper()
		r := runBaton(env, "", append(args, "--json")...)
		if r.code != want {
			t.Fatalf("baton %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, want, r.stdout, r.stderr)
		}
		return r
	}
	run(exitUsage, "drill", "kill", "n2")
	run(exitUsage, "drill", "kill", "n2", "--yes", "--sessions", "0")
	var before baton.Status
	var r result
	eventually(t, "the cluster is healthy when it comes to the kill", func() bool {
		err := f.waitHealthy(t.Context(), healthyWithin)
		if err == nil {
			before, err = f.status(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		r = runBaton(env, "", "drill", "kill", "leader", "--yes", "--sessions", "20", "--json")
		return r.code != exitRefused || !strings.Contains(r.stdout, `"quorum_at_risk"`)
	})
	if r.code != exitOK {
		t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	after, err := f.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := r.fields(t)
	for key, want := range map[string]any{
		"sessions": 20.0, "unserved": 0.0, "lost": 0.0, "duplicated": 0.0, "refused": 0.0, "leader": true,
	} {
		if out[key] != want {
			t.Errorf("%s is %v, want %v: %s", key, out[key], want, r.stdout)
		}
	}
	// A leader tells of what it saw to itself: of all of it if none was elected since
	// but the killed one's successor.
	line, all := out["timeline"].(map[string]any), after.Term == before.Term+1
	if line["served_us"] == 0.0 || all && (out["moved"] != 20.0 || line["fenced_us"] == 0.0 || line["assigned_us"] == 0.0) {
		t.Errorf("%v sessions moved, and the timeline is %v", out["moved"], line)
	}
	// The cluster cannot lose another one.
	other := "n1"
	if out["node"] == other {
		other = "n2"
	}
	again := run(exitRefused, "drill", "kill", other, "--yes", "--sessions", "1")
	if !strings.Contains(again.stdout, `"quorum_at_risk"`) {
		t.Errorf("a second drill: %s", again.stdout)
	}
}
