package main

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// TestFailoverLosesNothing is the promise of a failover in small (`bench --self
// --op failover`): nodes die by SIGKILL one after the other, every session is
// served again, each call counts once, and none is refused.
func TestFailoverLosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	t.Setenv(runAsBaton, "1")
	told := 0
	for _, standby := range []string{"true", "false"} {
		t.Run("standby "+standby, func(t *testing.T) {
			r := runBaton(nil, "", "bench", "--self", "--op", "failover", "--sessions", "60", "--conns", "6", "--kills", "2",
				"--standby="+standby, "--profile", "local", "--think", "50ms", "--json")
			if r.code != exitOK {
				t.Fatalf("exit %d: %s%s", r.code, r.stdout, r.stderr)
			}
			out := r.fields(t)
			for _, k := range []string{"lost", "duplicated", "refused"} {
				if out[k] != 0.0 {
					t.Errorf("%s is %v: %s", k, out[k], r.stdout)
				}
			}
			kills := out["kills"].([]any)
			if len(kills) != 2 {
				t.Fatalf("%d kills", len(kills))
			}
			for _, k := range kills {
				k := k.(map[string]any)
				line := k["timeline"].(map[string]any)
				// A leader tells of what it saw to itself: another may have been elected meanwhile.
				fenced, assigned := line["fenced_us"].(float64), line["assigned_us"].(float64)
				whole := fenced > 0 && assigned > 0
				if whole {
					told++
				}
				if k["unserved"] != 0.0 || whole && assigned < fenced {
					t.Errorf("a kill went %v", k)
				}
			}
		})
	}
	if told == 0 {
		t.Error("of no kill it was told when the node was fenced and its sessions assigned")
	}
}

// TestHerdIsServed is `bench --self --op herd` in small: so many clients that they
// are told to spread lose their node at once, and all are served again.
func TestHerdIsServed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	t.Setenv(runAsBaton, "1")
	r := runBaton(nil, "", "bench", "--self", "--op", "herd", "--clients", "300", "--profile", "local", "--json")
	if r.code != exitOK {
		t.Fatalf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	out := r.fields(t)
	for _, k := range []string{"unserved", "lost", "duplicated", "refused"} {
		if out[k] != 0.0 {
			t.Errorf("%s is %v: %s", k, out[k], r.stdout)
		}
	}
	a := out["arrivals"].(map[string]any)
	if a["overflown"] != 0.0 || a["waiting_most"].(float64) > a["waiting_max"].(float64) || out["spread_us"] == 0.0 {
		t.Errorf("it was not paced: %s", r.stdout)
	}
}

// TestIdleIsMeasured: `bench --self --op idle` finds its sessions attached in the end.
func TestIdleIsMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	t.Setenv(runAsBaton, "1")
	r := runBaton(nil, "", "bench", "--self", "--op", "idle", "--sessions", "60", "--conns", "6", "--duration", "1s", "--profile", "local", "--json")
	if r.code != exitOK {
		t.Fatalf("exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if out := r.fields(t); out["sessions"] != 60.0 || len(out["nodes"].(map[string]any)) != 3 {
		t.Errorf("%s", r.stdout)
	}
}

func TestTimelineOf(t *testing.T) {
	killed := time.Unix(100, 0)
	at := func(ms int) time.Time { return killed.Add(time.Duration(ms) * time.Millisecond) }
	all := []baton.Failover{
		{Node: "n1", FencedAt: at(-5000), SuspectedAt: at(-6000)}, // an earlier one
		{Node: "n2", FencedAt: at(900)},
		{Node: "n1", SuspectedAt: at(-1), PromisesOutAt: at(980), FencedAt: at(990), AssignedAt: at(1000), Why: "w"},
	}
	want := timelineJSON{PromisesOutUS: 980_000, FencedUS: 990_000, AssignedUS: 1_000_000, Why: "w"}
	if got := timelineOf(all, "n1", killed); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
