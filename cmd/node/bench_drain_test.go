package main

import "testing"

// TestDrainKeepsEverythingWhileLeadersDie is the drain of ten thousand sessions
// in small (`bench --op drain --sessions 10000 --conns 200 --kill-leader 2`): the
// leader is killed twice in its middle, and nothing is lost, doubled or refused.
func TestDrainKeepsEverythingWhileLeadersDie(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	t.Setenv(runAsBaton, "1")
	r := runBaton(nil, "", "bench", "--self", "--op", "drain", "--sessions", "300", "--conns", "6",
		"--kill-leader", "2", "--rate", "100", "--max-pause", "50ms", "--target", "100", "--json")
	if r.code != exitOK {
		t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	out := r.fields(t)
	for key, want := range map[string]any{
		"state": "done", "failed": 0.0, "lost": 0.0, "duplicated": 0.0, "refused": 0.0, "remaining": 0.0, "leader_kills": 2.0,
	} {
		if out[key] != want {
			t.Errorf("%s is %v, want %v: %s", key, out[key], want, r.stdout)
		}
	}
	if out["moved"].(float64) == 0 || out["calls"].(float64) == 0 || out["job_pause_us"].(map[string]any)["p50"] == 0.0 {
		t.Errorf("nothing was moved under calls: %s", r.stdout)
	}
}
