package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const (
	// deliverWithin is how long the last pushes may be under way.
	deliverWithin = 5 * time.Second
	// finalWithin bounds one session's final read through one node.
	finalWithin = 10 * time.Second
	// readersMax final reads run at once.
	readersMax = 12
	// migrationsMax is more than the cluster remembers.
	migrationsMax = 10_000
)

// judge collects the nodes' records and compares.
func (d *demo) judge(ctx context.Context) demoJSON {
	if err := d.fleet.waitHealthy(ctx, healthyWithin); err != nil {
		d.fault("in the end: %v", err)
	}
	d.delivered(ctx)
	h := d.ledger.history()
	d.records(ctx, &h)
	d.load.detach(ctx)
	h.Finals = d.finalReads(ctx, &h)
	d.show.line("judge", "%d final reads through nodes other than the owner", len(h.Finals))
	verdict := d.verdict(ctx)
	d.recorder.now(ctx)
	h.Servings = d.recorder.all()
	// Reads of observers may have ended after the copy above.
	h.Ops = d.ledger.history().Ops
	return d.sum(&h, verdict)
}

// delivered waits until every acknowledged push has arrived.
func (d *demo) delivered(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, deliverWithin)
	defer cancel()
	for d.ledger.undelivered() > 0 && ctx.Err() == nil {
		d.rest(ctx, pollEvery)
	}
}

// records asks the cluster for what it has on record: rows, ownership
// histories, migrations.
func (d *demo) records(ctx context.Context, h *History) {
	h.Rows, h.Owners, h.Names = map[string]baton.SessionInfo{}, map[string][]baton.OwnerChange{}, map[string]string{}
	if st, err := d.fleet.status(ctx); err == nil {
		for _, n := range st.Nodes {
			h.Names[n.ID] = n.Name
		}
	}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(readersMax)
	for _, ls := range d.load.all {
		g.Go(func() error {
			var row baton.SessionInfo
			var story baton.Explanation
			err := d.retry(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
				if row, err = a.Session(ctx, ls.id); err == nil {
					story, err = a.Explain(ctx, ls.id)
				}
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				d.fault("records of %s: %v", ls.id, err)
				return nil
			}
			h.Rows[ls.id], h.Owners[ls.id] = row, story.Changes
			return nil
		})
	}
	_ = g.Wait()
	if err := d.retry(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		h.Migrations, err = a.Migrations(ctx, migrationsMax)
		return err
	}); err != nil {
		d.fault("the list of migrations: %v", err)
	}
}

// finalReads reads every session through each node that does not own it, by
// relay: the client cannot reach any other node.
func (d *demo) finalReads(ctx context.Context, h *History) []Final {
	var mu sync.Mutex
	var out []Final
	for _, n := range d.fleet.nodes {
		c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: []string{n.user}, PKI: d.fleet.pki, RelayOnly: true, Network: onlyTo{n.user}})
		if err != nil {
			d.fault("final reads through %s: %v", n.name, err)
			continue
		}
		var g errgroup.Group
		g.SetLimit(readersMax)
		for _, k := range h.Keys {
			if h.Rows[k.Session].Owner == n.name {
				continue
			}
			g.Go(func() error {
				r := finalRead(ctx, c, k, n.name, finalWithin)
				mu.Lock()
				defer mu.Unlock()
				out = append(out, r)
				return nil
			})
		}
		_ = g.Wait()
		_ = c.Close()
	}
	return out
}

// verdict asks the cluster to check itself.
func (d *demo) verdict(ctx context.Context) baton.Verdict {
	var v baton.Verdict
	err := d.retry(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		v, err = a.Verify(ctx)
		return err
	})
	switch {
	case err != nil:
		d.fault("verify: %v", err)
	case !v.OK:
		d.fault("verify found %d violations", len(v.Violations))
	case len(v.Hashes) != fleetSize || len(v.Unreachable) > 0:
		d.fault("verify compared %d of %d nodes", len(v.Hashes), fleetSize)
	}
	for _, s := range v.Hashes {
		if s.Hash != v.Hashes[0].Hash || s.Index != v.Hashes[0].Index {
			d.fault("state hashes differ: %s has %s at %d, %s has %s at %d", s.Node, s.Hash, s.Index, v.Hashes[0].Node, v.Hashes[0].Hash, v.Hashes[0].Index)
		}
	}
	return v
}

// sum makes the verdict of the whole.
func (d *demo) sum(h *History, v baton.Verdict) demoJSON {
	found := check(h)
	took := h.failovers(d.outages)
	out := demoJSON{
		Lost: found.Lost, Duplicated: found.Duplicated, DoubleOwned: found.DoubleOwned, StaleReads: found.StaleReads,
		Refused: found.Refused, Contradictions: found.Contradictions,
		Pivots: h.pivots(), Failovers: len(took),
		PivotPauseUS: quantiles(h.pauses()), FailoverUS: quantiles(took),
		Sessions: len(h.Keys), AbortedMoves: int(d.mover.aborted.Load()),
		Drains: d.drains, Kills: d.kills, Stalls: d.stalls, LeaderPauses: d.pauses, Rolled: d.rolled,
		FinalReads: len(h.Finals), Verify: v, Seed: d.seed,
	}
	out.DoubleOwned += max(0, v.DoubleOwned+v.Overlaps)
	out.AbortedWhy = map[string]int{}
	for _, m := range h.Migrations {
		if m.Why != "" {
			out.AbortedWhy[m.Why]++
		}
	}
	for _, o := range h.Ops {
		if !o.Acked {
			out.Unacked++
			continue
		}
		out.Acked++
		if o.Attempts > 1 {
			out.Retried++
		}
	}
	d.demands(&out)
	out.Violations = nonNil(slices.Concat(d.faults, found.Violations))
	out.OK = found.clean() && len(d.faults) == 0
	out.Verify.Hashes, out.Verify.Violations, out.Verify.Unreachable = nonNil(v.Hashes), nonNil(v.Violations), nonNil(v.Unreachable)
	return out
}

// demands adds as faults what the run did not reach: a demo that did too little
// proves nothing.
func (d *demo) demands(out *demoJSON) {
	need := func(ok bool, format string, args ...any) {
		if !ok {
			d.faults = append(d.faults, fmt.Sprintf(format, args...))
		}
	}
	need(out.Acked >= d.minAcked, "only %d operations were acknowledged, of %d", out.Acked, d.minAcked)
	need(out.Pivots >= d.minPivots, "only %d pivots, of %d", out.Pivots, d.minPivots)
	need(out.Drains == 1, "no drain was completed")
	need(!d.kill || out.Kills >= 2 && out.Stalls >= 1, "%d of 2 nodes were killed, %d of 1 stalled past failover", out.Kills, out.Stalls)
	need(!d.kill || out.LeaderPauses >= pausesEach, "%d of %d leaders were paused", out.LeaderPauses, pausesEach)
	need(!d.kill || out.Failovers >= 1, "no session failed over")
	need(!d.rolling || out.Rolled == fleetSize, "only %d of %d nodes were restarted in order", out.Rolled, fleetSize)
	others := (fleetSize - 1) * out.Sessions
	need(out.FinalReads >= others, "only %d final reads, of %d", out.FinalReads, others)
}
