package main

import (
	"strings"
	"testing"
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
	r := run(exitOK, "drill", "kill", "leader", "--yes", "--sessions", "20")
	out := r.fields(t)
	for key, want := range map[string]any{
		"sessions": 20.0, "unserved": 0.0, "lost": 0.0, "duplicated": 0.0, "refused": 0.0, "leader": true, "moved": 20.0,
	} {
		if out[key] != want {
			t.Errorf("%s is %v, want %v: %s", key, out[key], want, r.stdout)
		}
	}
	line := out["timeline"].(map[string]any)
	if line["fenced_us"] == 0.0 || line["assigned_us"] == 0.0 || line["served_us"] == 0.0 {
		t.Errorf("the timeline is %v", line)
	}
	// The cluster cannot lose another one.
	again := run(exitRefused, "drill", "kill", "leader", "--yes", "--sessions", "1")
	if !strings.Contains(again.stdout, `"quorum_at_risk"`) {
		t.Errorf("a second drill: %s", again.stdout)
	}
}
