package main

import (
	"context"
	"fmt"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/check"
	"github.com/baton-cluster/baton/test/jepsen-lite/history"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// judge heals, reads everything once more, and runs all checks.
func (t *torture) judge(ctx context.Context) report {
	r := report{Seed: t.seed, Duration: t.duration.String(), Args: t.args}
	heal, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	t.say("healing")
	if err := t.cluster.recover(heal); err != nil {
		t.complain(check.Violation{Check: "recovery", Detail: fmt.Sprintf("not whole within %v after all was healed: %v", recoverLimit, err)})
	}
	t.say("reading %d sessions", len(t.load.finished))
	t.finalReads(ctx, history.BySession(t.rec.Ops()))
	t.goneForGood(ctx)
	_ = t.cluster.collectOnce(ctx)
	r.Verify = t.verify(ctx)
	ops := t.rec.Ops()
	t.say("checking %d operations", len(ops))
	served := t.cluster.served()
	t.complain(check.Owners(ops, served, t.cluster.nameOf())...)
	t.histories(ctx, ops)
	t.linear(ops)
	t.grown(ctx)
	if err := t.cluster.mesh.DropErr(); err != nil {
		t.complain(check.Violation{Check: "harness", Detail: "the firewall: " + err.Error()})
	}
	for _, d := range t.cluster.died() {
		t.complain(check.Violation{Check: "crash", Detail: d})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r.DurationUS = t.rec.Now() / 1000
	r.Sessions, r.Ops, r.Counts = len(t.load.finished), len(ops), t.counts
	r.Leased, r.Tally, r.Size, r.Skipped = leased(ops), t.load.tally, t.size, t.skipped
	r.Epochs, r.Servings, r.LatencyUS = epochs(ops), len(served), latency(ops)
	r.Faults, r.Violations = t.faults, t.violations
	if r.Violations == nil {
		r.Violations = []check.Violation{}
	}
	r.OK = len(r.Violations) == 0
	return r
}

// finalReads reads every session once more, through another client than the one
// that opened it, and holds the ledgers against what is there.
func (t *torture) finalReads(ctx context.Context, by map[string][]history.Op) {
	queue := make(chan *lane)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range queue {
				t.finalRead(ctx, n, by[n.id])
			}
		}()
	}
	for _, n := range t.load.finished {
		queue <- n
	}
	close(queue)
	wg.Wait()
}

func (t *torture) finalRead(ctx context.Context, n *lane, ops []history.Op) {
	ctx, cancel := context.WithTimeout(ctx, finalLimit)
	defer cancel()
	if n.kind == pushes {
		t.finalPushes(ctx, n, ops)
		return
	}
	s, err := t.load.clients[(n.home+1)%len(t.load.clients)].Resume(ctx, n.id, n.secret)
	if err != nil {
		t.complain(check.Violation{Check: "unavailable", Session: n.id, Detail: fmt.Sprintf("cannot be resumed within %v after healing: %v", finalLimit, err)})
		return
	}
	n.adopt(s)
	_, client := n.current()
	if n.kind == streams { // now nothing may end one
		if _, err := exchange(ctx, s, "mirror", makeNoise(1, streamMax)); err != nil {
			t.complain(check.Violation{Check: "unavailable", Session: n.id, Detail: "a stream after healing: " + err.Error()})
		}
	}
	keys := map[slotKind][]string{counter: {"n"}, theft: {"n"}, register: {"r"}, shared: {"r"}}[n.kind]
	if n.kind == appends {
		for k := range n.lists + 1 {
			keys = append(keys, listKey(k))
		}
	}
	for _, key := range keys {
		value, ok := n.get(s, client, key)
		if !ok {
			t.complain(check.Violation{Check: "unavailable", Session: n.id, Detail: "no final read of " + key})
			continue
		}
		t.ledger(n, key, value, ops)
	}
}

// ledger holds what was acknowledged of one key against its final value.
func (t *torture) ledger(n *lane, key, value string, all []history.Op) {
	var ops []history.Op
	for _, op := range all {
		if op.Key == key {
			ops = append(ops, op)
		}
	}
	counts := check.Tally(ops)
	var bad []check.Violation
	switch n.kind {
	case counter, theft:
		sum, err := strconv.ParseInt("0"+value, 10, 64)
		if err != nil {
			bad = append(bad, check.Violation{Check: "lost", Session: n.id, Detail: "the counter ends as " + value})
			break
		}
		counts, bad = check.Counter(n.id, ops, sum)
	case appends:
		var list []string
		if value != "" {
			list = strings.Split(value, ",")
		}
		counts, bad = check.Appends(n.id, ops, list, element)
	}
	t.add(counts)
	t.complain(bad...)
}

func (t *torture) add(c check.Counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Add(c)
}

// finalPushes waits until every acknowledged push of the lane has arrived.
func (t *torture) finalPushes(ctx context.Context, n *lane, ops []history.Op) {
	_ = proc.Poll(ctx, 100*time.Millisecond, func() error {
		if c, _ := check.Pushes(n.id, ops, t.pushesOf(n)); c.Lost > 0 {
			return fmt.Errorf("%d are missing", c.Lost)
		}
		return nil
	})
	counts, bad := check.Pushes(n.id, ops, t.pushesOf(n))
	t.add(counts)
	t.complain(bad...)
}

func (t *torture) pushesOf(n *lane) []history.Received {
	var out []history.Received
	for _, p := range t.rec.Pushes() {
		if p.Session == n.id {
			out = append(out, p)
		}
	}
	return out
}

// expiryLimit is how long sessions may be there still that were left before the
// healing: their TTL, the leader's next tick, and paced expiry.
const expiryLimit = time.Minute

// askLimit is what one question of many to the cluster may take on a slow machine.
const askLimit = 100 * time.Millisecond

// goneForGood waits until every session is gone that was closed, or left until it
// expired.
func (t *torture) goneForGood(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, expiryLimit+time.Duration(len(t.load.gone))*askLimit)
	defer cancel()
	for _, g := range t.load.gone {
		err := proc.Poll(ctx, 500*time.Millisecond, func() error {
			s, err := t.cluster.admin.Session(ctx, g.id)
			switch baton.CodeOf(err).Label() {
			case "unknown_session", "session_closed", "session_expired":
				return nil
			case "ok":
				err = fmt.Errorf("it is there, in epoch %d", s.Epoch)
			}
			return err
		})
		if err != nil {
			t.complain(check.Violation{Check: "not gone", Session: g.id, Detail: fmt.Sprintf("closed, or left to expire (%v): %v", g.expires, err)})
		}
	}
}

// verify asks the cluster for its own verdict, until every node could be asked.
func (t *torture) verify(ctx context.Context) baton.Verdict {
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	var v baton.Verdict
	err := proc.Poll(ctx, 500*time.Millisecond, func() error {
		var err error
		v, err = t.cluster.admin.Verify(ctx)
		if err == nil && (len(v.Unreachable) > 0 || len(v.Hashes) < t.nodes) {
			err = fmt.Errorf("%d of %d hashes, %v unreachable", len(v.Hashes), t.nodes, v.Unreachable)
		}
		return err
	})
	if err != nil {
		t.complain(check.Violation{Check: "verify", Detail: err.Error()})
	}
	for _, d := range v.Violations {
		t.complain(check.Violation{Check: "verify", Detail: d})
	}
	for _, h := range v.Hashes[min(1, len(v.Hashes)):] {
		if h.Index == v.Hashes[0].Index && h.Hash != v.Hashes[0].Hash {
			t.complain(check.Violation{Check: "hashes", Detail: fmt.Sprintf("at index %d %s has %s, %s has %s", h.Index, v.Hashes[0].Node, v.Hashes[0].Hash, h.Node, h.Hash)})
		}
	}
	return v
}

// histories checks every session's ownership history.
func (t *torture) histories(ctx context.Context, ops []history.Op) {
	ctx, cancel := context.WithTimeout(ctx, verifyLimit+time.Duration(len(t.load.finished))*askLimit)
	defer cancel()
	by, names := history.BySession(ops), t.cluster.nameOf()
	for _, n := range t.load.finished {
		e, err := t.cluster.admin.Explain(ctx, n.id)
		if err != nil {
			t.complain(check.Violation{Check: "explain", Session: n.id, Detail: err.Error()})
			continue
		}
		var changes []check.Change
		for _, c := range e.Changes {
			owner := c.Owner
			if name := names[owner]; name != "" { // of a server that is gone only its id is left
				owner = name
			}
			changes = append(changes, check.Change{
				Epoch: c.Epoch, Owner: owner, Index: c.Index, Fenced: strings.HasPrefix(c.Reason, "owner fenced"),
			})
		}
		t.complain(check.Epochs(n.id, changes, by[n.id])...)
		t.complain(check.Leases(n.id, changes, by[n.id])...)
	}
}

// linear checks all sessions, as many at once as there are processors.
func (t *torture) linear(ops []history.Op) {
	queue := make(chan []history.Op)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for part := range queue {
				t.complain(check.Linear(part, searchLimit)...)
			}
		}()
	}
	for _, part := range history.BySession(ops) {
		queue <- part
	}
	close(queue)
	wg.Wait()
}

func epochs(ops []history.Op) int {
	seen := map[string]bool{}
	for i := range ops {
		if op := &ops[i]; op.Epoch > 0 {
			seen[op.Session+" "+strconv.FormatUint(op.Epoch, 10)] = true
		}
	}
	return len(seen)
}

func leased(ops []history.Op) (n int) {
	for i := range ops {
		if ops[i].Leased {
			n++
		}
	}
	return n
}

func latency(ops []history.Op) baton.Quantiles {
	var us []int64
	for i := range ops {
		if ops[i].Outcome == history.OK {
			us = append(us, (ops[i].Return-ops[i].Call)/1000)
		}
	}
	if len(us) == 0 {
		return baton.Quantiles{}
	}
	sort.Slice(us, func(i, j int) bool { return us[i] < us[j] })
	return baton.Quantiles{P50: us[len(us)/2], P99: us[len(us)*99/100], Max: us[len(us)-1]}
}
