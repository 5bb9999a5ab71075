package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/check"
	"github.com/baton-cluster/baton/test/jepsen-lite/history"
	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// options of a run.
type options struct {
	node     string // the node program; empty: built from this repository
	duration time.Duration
	seed     uint64
	nodes    int
	clients  int
	slots    int
	think    time.Duration
	kinds    []nemesis.Kind
	dir      string // keep everything here; empty: a directory that goes, unless there is a violation
	spaces   bool   // hosts have network namespaces of their own, and a firewall
	inside   bool   // this is the process in the namespace
	skipped  []string
	page     string   // file of the report as a page
	args     []string // what else has to be given to draw the same run again
	progress io.Writer
}

// report is what a run ends with.
type report struct {
	OK         bool              `json:"ok"`
	Seed       uint64            `json:"seed"`
	Duration   string            `json:"duration"` // as asked for
	Args       []string          `json:"args"`     // besides
	Skipped    []string          `json:"skipped"`  // what could not be done here, and why
	DurationUS int64             `json:"duration_us"`
	Sessions   int               `json:"sessions"`
	Ops        int               `json:"ops"`
	Counts     check.Counts      `json:"counts"`
	Epochs     int               `json:"epochs"`   // distinct (session, epoch) that served
	Servings   int               `json:"servings"` // records of nodes that were compared
	Leased     int               `json:"leased"`   // reads that were answered under a lease
	Tally      tally             `json:"tally"`
	Size       growth            `json:"size"`
	LatencyUS  baton.Quantiles   `json:"latency_us"`
	Plan       []nemesis.Fault   `json:"plan"`
	Faults     []nemesis.Event   `json:"faults"`
	Verify     baton.Verdict     `json:"verify"`
	Violations []check.Violation `json:"violations"`
	Dir        string            `json:"dir,omitempty"`  // data and logs
	Page       string            `json:"page,omitempty"` // the report as a page
}

// limits of what comes after the load, so that a run always ends.
const (
	warm         = 3 * time.Second // calm at the start
	bootLimit    = 60 * time.Second
	recoverLimit = 60 * time.Second
	verifyLimit  = 30 * time.Second
	searchLimit  = 5 * time.Minute // of Porcupine for one key: a hang's limit, for slow machines too
	collectEvery = 500 * time.Millisecond
)

// torture is one run.
type torture struct {
	options
	cluster *cluster
	rec     *history.Recorder
	load    *load

	mu         sync.Mutex
	violations []check.Violation
	faults     []nemesis.Event
	spans      []nemesis.Span
	counts     check.Counts
	size       growth
}

func (t *torture) complain(v ...check.Violation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.violations = append(t.violations, v...)
	for _, v := range v {
		t.say("VIOLATION %s", v)
	}
}

func (t *torture) say(format string, args ...any) {
	if t.progress == nil {
		return
	}
	at := time.Duration(0)
	if t.rec != nil {
		at = time.Duration(t.rec.Now())
	}
	fmt.Fprintf(t.progress, "%7.2fs  %s\n", at.Seconds(), fmt.Sprintf(format, args...))
}

// run builds, tortures and judges. An error means that it could not be done;
// what the cluster did wrong is in the report.
func run(ctx context.Context, o options) (report, error) {
	dir, remove, err := tempDir(o.dir)
	if err != nil {
		return report{}, err
	}
	defer func() { remove() }()
	if o.node, err = nodeProgram(ctx, o.node, dir); err != nil {
		return report{}, err
	}
	t := &torture{options: o}
	boot, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if t.cluster, err = newCluster(boot, o.node, dir, o.nodes, o.clients, o.seed, o.spaces); err != nil {
		return report{}, err
	}
	defer t.cluster.close()
	t.size.ClientsBefore = clientGoroutines()
	if _, t.size.Before, err = t.cluster.sizes(boot); err != nil {
		return report{}, err
	}
	t.rec = history.NewRecorder()
	if err := t.dialAll(boot); err != nil {
		return report{}, err
	}
	defer func() {
		for _, c := range t.load.clients {
			c.Close()
		}
	}()
	plan := nemesis.Plan(o.seed, o.duration, warm, o.nodes, o.kinds)
	t.say("seed %d: %d nodes, %d clients, %d slots, %d faults in %v", o.seed, o.nodes, o.clients, o.slots, len(plan), o.duration)
	t.torment(ctx, plan)
	r := t.judge(ctx)
	r.Plan = plan
	if o.dir != "" || !r.OK {
		r.Dir = dir
		remove = func() {}
	}
	return r, errors.Join(t.writePage(&r, dir), t.keepHistories(r, dir), ctx.Err())
}

// historiesMax are kept of sessions with violations.
const historiesMax = 10

// keepHistories leaves those of sessions with violations beside the logs.
func (t *torture) keepHistories(r report, dir string) error {
	by := map[string][]history.Op{}
	if !r.OK {
		by = history.BySession(t.rec.Ops())
	}
	kept := 0
	for _, v := range r.Violations {
		ops := by[v.Session]
		delete(by, v.Session)
		if kept++; len(ops) == 0 || kept > historiesMax {
			continue
		}
		b, err := json.Marshal(ops)
		if err == nil {
			err = writeFile(filepath.Join(dir, "history-"+v.Session+".json"), b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writePage writes the report as a page where that was asked for, or where it is of
// use.
func (t *torture) writePage(r *report, dir string) error {
	if r.Page = t.page; r.Page == "" && r.Dir != "" {
		r.Page = filepath.Join(dir, "report.html")
	}
	if r.Page == "" {
		return nil
	}
	var b bytes.Buffer
	if err := t.write(&b, *r); err != nil {
		return err
	}
	return writeFile(r.Page, b.Bytes())
}

// nodeProgram returns the node program to test, built if none was given.
func nodeProgram(ctx context.Context, given, dir string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	root, err := proc.Root()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "node")
	return out, buildNode(ctx, root, out, "")
}

// buildNode builds the node program, with an overlay that plants a mutant where
// one is given.
func buildNode(ctx context.Context, root, out, overlay string) error {
	return proc.BuildProgram(ctx, filepath.Join(root, "test", "jepsen-lite"), "./node", out, overlay)
}

// denseRun is up to how long a run reads as often as it can: a history is kept in
// memory to its end. A longer one has as many reads.
const denseRun = 5 * time.Minute

func (t *torture) dialAll(ctx context.Context) error {
	t.load = &load{
		rec: t.rec, seed: t.seed, think: t.think, live: map[string]bool{}, poke: make(chan struct{}),
		pace:    max(1, float64(t.duration)/float64(denseRun)),
		cluster: t.cluster, tally: tally{Thefts: map[string]int{}},
		complain: func(kind, session, detail string) {
			t.complain(check.Violation{Check: kind, Session: session, Detail: detail})
		},
	}
	t.cluster.live, t.cluster.displace = t.load.ids, t.load.displaceAll
	t.cluster.complain = func(kind, detail string) { t.complain(check.Violation{Check: kind, Detail: detail}) }
	for i := range t.clients {
		c, err := t.cluster.dial(ctx, i)
		if err != nil {
			return err
		}
		t.load.clients = append(t.load.clients, c)
	}
	return nil
}

// torment runs load and faults for the run's duration, and returns when every
// operation has ended and every fault is undone.
func (t *torture) torment(ctx context.Context, plan []nemesis.Fault) {
	span, cancel := context.WithTimeout(ctx, t.duration)
	defer cancel()
	collecting, stop := context.WithCancel(ctx)
	defer stop()
	var wg, collector sync.WaitGroup
	collector.Add(1)
	go func() {
		defer collector.Done()
		t.cluster.collect(collecting, collectEvery)
	}()
	wg.Add(2)
	go func() {
		defer wg.Done()
		t.load.run(span, t.slots)
	}()
	go func() {
		defer wg.Done()
		r := &nemesis.Runner{World: t.cluster, Now: t.rec.Now, Log: func(e nemesis.Event) {
			t.mu.Lock()
			t.faults = append(t.faults, e)
			t.mu.Unlock()
			t.say("%s", e.What)
		}, Did: func(s nemesis.Span) {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.spans = append(t.spans, s)
		}}
		r.Run(span, plan)
	}()
	wg.Wait()
	stop()
	collector.Wait()
}

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

// goneForGood waits until every session is gone that was closed, or left until it
// expired.
func (t *torture) goneForGood(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, expiryLimit)
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
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
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
