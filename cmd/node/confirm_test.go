package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestOperatorConfirmsMoves: under a policy that asks an operator, moves and
// drains wait in sight of everybody until they are decided.
func TestOperatorConfirmsMoves(t *testing.T) {
	f := testCluster(t, "--confirm", "auto by=ci*,manual reason=user_requested|planned_maintenance", "--confirm-within", "1m")
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	run := func(want int, args ...string) result {
		t.Helper()
		r := runBaton(env, "", append(args, "--json")...)
		if r.code != want {
			t.Fatalf("baton %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, want, r.stdout, r.stderr)
		}
		return r
	}
	ask := func() chan result {
		ch := make(chan result, 1)
		go func() {
			ch <- runBaton(env, "", "migrate", "s", "--to", "n3", "--reason", "user_requested", "--meta", "ticket=7,why=test", "--json")
		}()
		return ch
	}
	// waiting is the number of the request that is to be decided.
	waiting := func() string {
		t.Helper()
		for range 300 {
			var m struct {
				Request  uint64
				State    string
				Metadata map[string]string
			}
			_ = json.Unmarshal([]byte(strings.Split(run(exitOK, "migrations", "--limit", "1").stdout, "\n")[0]), &m)
			if m.Request != 0 {
				if m.State != "WaitingConfirmation" || m.Metadata["ticket"] != "7" {
					t.Errorf("%+v", m)
				}
				return strconv.FormatUint(m.Request, 10)
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatal("no move waits")
		return ""
	}
	run(exitOK, "session", "open", "--id", "s", "--node", "n2")
	ch := ask()
	run(exitOK, "migration", "defer", waiting(), "--for", "2m", "--reason", "at lunch")
	run(exitOK, "migration", "reject", waiting(), "--reason", "no")
	if r := <-ch; r.code != exitRefused || !strings.Contains(r.stdout, "move_rejected") {
		t.Errorf("rejected: %d %s%s", r.code, r.stdout, r.stderr)
	}
	ch = ask()
	confirmed := run(exitOK, "migration", "confirm", waiting(), "--by", "alice").fields(t)
	if r := <-ch; r.code != exitOK || confirmed["state"] != "Completed" || confirmed["confirmed_by"] != "alice" {
		t.Errorf("confirmed: %v; the requester got %d %s%s", confirmed, r.code, r.stdout, r.stderr)
	}
	if story := run(exitOK, "session", "explain", "s").stdout; !strings.Contains(story, "alice") || !strings.Contains(story, "ticket") {
		t.Errorf("explain: %s", story)
	}
	run(exitRefused, "migration", "confirm", "1")

	job := run(exitOK, "drain", "n3", "--detach").fields(t)
	if job["state"] != "paused" || job["confirm_in_us"].(float64) <= 0 {
		t.Errorf("a drain that waits: %v", job)
	}
	id := strconv.FormatFloat(job["job"].(float64), 'f', 0, 64)
	run(exitRefused, "job", "resume", id)
	run(exitOK, "job", "confirm", id)
	var done map[string]any
	eventually(t, "the confirmed drain ends", func() bool {
		done = run(exitOK, "jobs", "--limit", "1").fields(t)
		return done["state"] != "paused" && done["state"] != "running"
	})
	if done["job"] != job["job"] || done["state"] != "done" || done["moved"] != 1.0 {
		t.Errorf("a confirmed drain: %v", done)
	}
}
