package baton_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

// jobSessions is how many sessions the tests of jobs move about.
const jobSessions = 40

// jobWorld is three real nodes whose jobs are followed to their ends, and the
// attached sessions on them.
type jobWorld struct {
	*testCluster
	ctx      context.Context
	a        *baton.Admin
	sessions []*baton.Session
	// known is how many changes of owner of each session were looked at.
	known map[string]int
}

// openJobWorld opens sessions, the ith on the node that on names.
func openJobWorld(t *testing.T, on func(i int) string) *jobWorld {
	w := &jobWorld{testCluster: startCluster(t, nil), ctx: testContext(t), known: map[string]int{}}
	w.a = w.admin()
	clients := []*baton.Client{w.client(), w.client()}
	for i := range jobSessions {
		s, err := clients[i%len(clients)].Open(w.ctx, baton.OpenOptions{ID: fmt.Sprintf("s%02d", i), Node: on(i)})
		must(t, err)
		if s.Owner().Name != on(i) { // a slow dial: the session is where the client came first
			must(t, w.arrive(w.ctx, s.ID(), on(i), true))
		}
		_, _, err = s.Incr(w.ctx, "n", 1)
		must(t, err)
		w.sessions = append(w.sessions, s)
	}
	w.changes()
	return w
}

// changes are those of each session's owner since the last look.
func (w *jobWorld) changes() map[string][]baton.OwnerChange {
	w.t.Helper()
	out := map[string][]baton.OwnerChange{}
	for _, s := range w.sessions {
		var e baton.Explanation
		must(w.t, insist(w.ctx, func() (err error) {
			e, err = w.a.Explain(w.ctx, s.ID())
			return err
		}))
		out[s.ID()] = e.Changes[w.known[s.ID()]:]
		w.known[s.ID()] = len(e.Changes)
	}
	return out
}

// explained checks that each change of a session was a move of one of jobs, for
// the reason given, and that each session ended at one of nodes.
func (w *jobWorld) explained(reason string, nodes string, jobs ...uint64) (moved map[string]string) {
	w.t.Helper()
	moved = map[string]string{}
	for id, changes := range w.changes() {
		for _, c := range changes {
			by := ""
			for _, job := range jobs {
				if strings.Contains(c.By, fmt.Sprint(" ", job, " by ")) {
					by = c.By
				}
			}
			if c.Reason != reason || by == "" || c.Migration == 0 {
				w.t.Errorf("%s: %+v is not explained by jobs %v for %s", id, c, jobs, reason)
			}
			moved[id] = c.Owner
		}
		if owner, ok := moved[id]; ok && !strings.Contains(nodes, owner) {
			w.t.Errorf("%s ended at %s, not at one of %s", id, owner, nodes)
		}
	}
	return moved
}

// intact checks that every session answers, with what it was told, where the nodes that
// are not down are of one mind.
func (w *jobWorld) intact(down ...string) {
	w.t.Helper()
	for _, s := range w.sessions {
		if v, err := s.Get(w.ctx, "n"); err != nil || string(v.Value) != "1" {
			w.t.Errorf("%s: %s, %v", s.ID(), v.Value, err)
		}
	}
	if v := w.verify(w.ctx, down...); v.DoubleOwned+v.Overlaps > 0 {
		w.t.Errorf("%+v", v)
	}
}

func (w *jobWorld) counts() map[string]int {
	w.t.Helper()
	st, err := w.a.Status(w.ctx)
	must(w.t, err)
	out := map[string]int{}
	for _, n := range st.Nodes {
		out[n.Name] = n.Sessions
	}
	return out
}

func (w *jobWorld) follow(job uint64, state string) baton.DrainReport {
	w.t.Helper()
	r, err := w.a.FollowJob(w.ctx, job, nil)
	if r.State != state || state == "done" && err != nil || r.Lost+r.Duplicated > 0 {
		w.t.Errorf("job %d: %+v, %v", job, r, err)
	}
	return r
}

// TestNodesDrainedTowardsEachOther: two of three nodes are drained at once, and
// everything ends on the third, which nothing could leave.
func TestNodesDrainedTowardsEachOther(t *testing.T) {
	w := openJobWorld(t, func(i int) string { return []string{"n1", "n2"}[i%2] })
	var jobs [2]baton.JobInfo
	var g errgroup.Group
	for i, node := range []string{"n1", "n2"} {
		g.Go(func() (err error) {
			jobs[i], err = w.a.StartDrain(w.ctx, node, baton.DrainOptions{})
			return err
		})
	}
	must(t, g.Wait())
	if _, err := w.a.StartDrain(w.ctx, "n3", baton.DrainOptions{}); baton.CodeOf(err).Label() != "no_target" {
		t.Errorf("a drain of the last node: %v", err)
	}
	for _, j := range jobs {
		if r := w.follow(j.Job, "done"); r.Failed > 0 {
			t.Errorf("%+v", r)
		}
	}
	// One may have gone to the other drained node before that was one: it moved on.
	moved := w.explained("planned_maintenance", "n3", jobs[0].Job, jobs[1].Job)
	if got := w.counts(); len(moved) != jobSessions || got["n3"] != jobSessions {
		t.Errorf("%d moved; %v", len(moved), got)
	}
	w.intact()
}

// TestDrainCancelledAndStartedAgain: what has moved stays where it is, the rest
// is where it was and the node takes sessions; the second drain takes the rest.
func TestDrainCancelledAndStartedAgain(t *testing.T) {
	w := openJobWorld(t, func(int) string { return "n1" })
	// At this rate the drain is far from its end when it is cancelled, through an
	// election even.
	first, err := w.a.StartDrain(w.ctx, "n1", baton.DrainOptions{PaceOptions: baton.PaceOptions{Rate: 2}})
	must(t, err)
	await(t, "some have moved", func() bool {
		j, err := w.a.Job(w.ctx, first.Job)
		return err == nil && j.Moved >= 3
	})
	must(t, insist(w.ctx, func() error { return w.a.Undrain(w.ctx, "n1") }))
	one := w.follow(first.Job, "cancelled")
	await(t, "what was under way has ended", func() bool {
		st, err := w.a.Status(w.ctx)
		return err == nil && st.Sessions.Migrating == 0
	})
	j, err := w.a.Job(w.ctx, first.Job)
	must(t, err)
	before := w.explained("planned_maintenance", "n2 n3", first.Job)
	if got := w.counts(); len(before) != int(j.Moved) || got["n1"] != jobSessions-len(before) || one.Remaining == 0 {
		t.Fatalf("%d moved of %+v; %v", len(before), j, got)
	}
	second, err := w.a.StartDrain(w.ctx, "n1", baton.DrainOptions{})
	must(t, err)
	two := w.follow(second.Job, "done")
	after := w.explained("planned_maintenance", "n2 n3", second.Job)
	for id := range after {
		if _, twice := before[id]; twice {
			t.Errorf("%s was moved by both drains", id)
		}
	}
	if len(before)+len(after) != jobSessions || two.Moved != len(after) || w.counts()["n1"] != 0 {
		t.Errorf("%d and %d moved; %+v; %v", len(before), len(after), two, w.counts())
	}
	w.intact()
}

// TestRebalanceDoesWhatItsDryRunSays, and moves nothing before.
func TestRebalanceDoesWhatItsDryRunSays(t *testing.T) {
	w := openJobWorld(t, func(i int) string { return []string{"n1", "n1", "n1", "n2"}[i%4] })
	dry, err := w.a.Rebalance(w.ctx, baton.RebalanceOptions{DryRun: true})
	must(t, err)
	if got := w.counts(); dry.Job != 0 || dry.Planned == 0 || got["n1"] != dry.Before["n1"] || len(w.explained("", "")) > 0 {
		t.Fatalf("dry run %+v; %v", dry, got)
	}
	plan, err := w.a.Rebalance(w.ctx, baton.RebalanceOptions{})
	must(t, err)
	if r := w.follow(plan.Job, "done"); r.Moved != dry.Planned || r.Failed > 0 {
		t.Errorf("%+v, planned %d", r, dry.Planned)
	}
	moved := w.explained("load_balancing", "n1 n2 n3", plan.Job)
	if len(moved) != len(dry.Moves) {
		t.Errorf("%d moved, %d planned", len(moved), len(dry.Moves))
	}
	for _, m := range dry.Moves {
		if moved[m.Session] != m.To {
			t.Errorf("%s is at %q, planned %+v", m.Session, moved[m.Session], m)
		}
	}
	for name, n := range w.counts() {
		if n != dry.After[name] {
			t.Errorf("%s has %d sessions, planned %d", name, n, dry.After[name])
		}
	}
	w.intact()
}

// TestDrainOutlivesItsTarget: one of the two nodes that a drain moves to dies in
// the middle; all sessions end on the other, those of the dead one by failover.
func TestDrainOutlivesItsTarget(t *testing.T) {
	w := openJobWorld(t, func(int) string { return "n1" })
	job, err := w.a.StartDrain(w.ctx, "n1", baton.DrainOptions{PaceOptions: baton.PaceOptions{Rate: 20}})
	must(t, err)
	await(t, "some have moved to n2", func() bool { return w.counts()["n2"] >= 2 })
	must(t, w.nodes[1].Close())
	w.a = w.admin()
	if r := w.follow(job.Job, "done"); r.Failed > 0 {
		t.Errorf("%+v", r)
	}
	await(t, "everything is on n3", func() bool { return w.counts()["n3"] == jobSessions })
	for id, changes := range w.changes() {
		at := ""
		for _, c := range changes {
			switch {
			case c.Migration != 0 && c.Reason == "planned_maintenance" && strings.Contains(c.By, fmt.Sprint(" ", job.Job, " by ")):
			case c.Migration == 0 && c.From == "n2" && strings.Contains(c.Reason, "owner"):
			default:
				t.Errorf("%s: %+v is explained by neither the drain nor the death of n2", id, c)
			}
			at = c.Owner
		}
		if at != "n3" {
			t.Errorf("%s ended at %s: %+v", id, at, changes)
		}
	}
	w.intact("n2")
}

// TestShutdownWithoutItsDrain: a node that is stopped does not wait for a drain that was
// called off.
func TestShutdownWithoutItsDrain(t *testing.T) {
	c := startClusterWith(t, func(_ int, cfg *baton.Config) {
		cfg.ConfirmMove = func(context.Context, baton.MoveOffer) baton.Confirmation { return baton.RejectMove("stays") }
	})
	ctx, a := testContext(t), c.admin()
	s, err := c.client().Open(ctx, baton.OpenOptions{})
	must(t, err)
	at := c.ownerIndex(s)
	stopped := make(chan error, 1)
	go func() { stopped <- c.nodes[at].Shutdown(ctx) }()
	eventually(t, "it drains", func() bool {
		jobs, err := a.Jobs(ctx, 1)
		return err == nil && len(jobs) == 1
	})
	must(t, insist(ctx, func() error { return a.Undrain(ctx, c.name(at)) }))
	must(t, <-stopped)
}
