package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
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
