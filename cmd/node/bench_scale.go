package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const (
	// scaleSessions and scaleConns are how many there are by default.
	scaleSessions    = 1_000_000
	scaleSessionsMax = 10_000_000
	scaleConns       = 32
	// scaleOpeners are how many sessions are being opened at a time.
	scaleOpeners = 1024
	// scalePart of the sessions are there when a write's cost is first measured.
	scalePart = 10
	// readyWithin is how long a killed node may take to serve again.
	readyWithin = 5 * time.Minute
	// readyEvery is how often it is asked.
	readyEvery = 20 * time.Millisecond
	// heapMetric is what the collector says of the heap, in bytes.
	heapMetric = "go_memstats_heap_alloc_bytes"
)

// scale sets what is not given.
func (b *benchFlags) scale(f *pflag.FlagSet) {
	if !f.Changed("sessions") {
		b.drain.sessions = scaleSessions
	}
	if !f.Changed("conns") {
		b.conns = scaleConns
	}
}

// scaleJSON is what `bench --op scale` finds.
type scaleJSON struct {
	Op         string `json:"op"`
	Sessions   int    `json:"sessions"` // at rest, with one value each
	ValueBytes int    `json:"value_bytes"`
	FillUS     int64  `json:"fill_us"`
	// HeapPerSession is by how many bytes a session made a node's live heap larger, at
	// the node where that is most.
	HeapPerSession float64 `json:"heap_per_session"`
	// Few and Many are of --clients that write for --duration beside a tenth of the
	// sessions, and beside all; CostRatio is of their processor time a write.
	Few       scaleWrites `json:"few"`
	Many      scaleWrites `json:"many"`
	CostRatio float64     `json:"cost_ratio"`
	// RestartUS is from the start of a node that was killed until it says it is ready.
	RestartUS int64 `json:"restart_us"`
}

// scaleWrites is one measurement of writes.
type scaleWrites struct {
	Sessions  int         `json:"sessions"`
	Ops       int64       `json:"ops"`
	Errors    int64       `json:"errors"`
	LatencyUS latencyJSON `json:"latency_us"`
	NodeCPUUS float64     `json:"node_cpu_us"` // of all nodes, a write
}

// scaler fills a cluster of its own and looks at it.
type scaler struct {
	*bencher
	p    *program
	f    *fleet
	http []string // where each node says how it is
}

func (p *program) benchScale(ctx context.Context, flags benchFlags) error {
	f, err := newFleet("", "", 0)
	if err != nil {
		return localError{err}
	}
	defer f.close()
	s := &scaler{bencher: newBencher(flags), p: p, f: f}
	defer s.close()
	if err := s.prepare(ctx); err != nil {
		return localError{err}
	}
	out, err := s.measure(ctx)
	if err != nil {
		return localError{err}
	}
	p.print(out, func(w io.Writer) { printScale(w, out) })
	return nil
}

// prepare starts the nodes, and opens the sessions that will write.
func (s *scaler) prepare(ctx context.Context) error {
	ports, err := takePorts(0)
	if err != nil {
		return err
	}
	for i, n := range s.f.nodes {
		addr := hostPort(ports[i].mgmt)
		n.args = append(n.args, "--http", addr)
		s.http = append(s.http, "http://"+addr)
	}
	s.f.profile(s.failover.profile)
	s.p.note("starting three nodes")
	if err := s.f.run(ctx); err != nil {
		return err
	}
	for i := range s.conns {
		c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: s.f.users(i % fleetSize), PKI: s.f.pki, RequestTimeout: survivorAnswered})
		if err != nil {
			return err
		}
		s.clients = append(s.clients, c)
	}
	return s.openSessions(ctx)
}

func (s *scaler) measure(ctx context.Context) (out scaleJSON, err error) {
	n := s.drain.sessions
	out = scaleJSON{Op: s.op, Sessions: n, ValueBytes: s.benchFlags.value}
	before, err := s.heaps(ctx)
	if err != nil {
		return out, err
	}
	begun := time.Now()
	if err := s.fill(ctx, 0, n/scalePart); err != nil {
		return out, err
	}
	took := time.Since(begun)
	if out.Few, err = s.writes(ctx, n/scalePart); err != nil {
		return out, err
	}
	begun = time.Now()
	if err := s.fill(ctx, n/scalePart, n); err != nil {
		return out, err
	}
	out.FillUS = (took + time.Since(begun)).Microseconds()
	if out.Many, err = s.writes(ctx, n); err != nil {
		return out, err
	}
	out.CostRatio = out.Many.NodeCPUUS / max(out.Few.NodeCPUUS, 1)
	after, err := s.heaps(ctx)
	if err != nil {
		return out, err
	}
	for i := range after {
		out.HeapPerSession = max(out.HeapPerSession, (after[i]-before[i])/float64(n))
	}
	out.RestartUS, err = s.restart(ctx)
	return out, err
}

// fill opens sessions, writes once to each, and leaves them.
func (s *scaler) fill(ctx context.Context, from, to int) error {
	s.p.note("opening %d sessions", to-from)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scaleOpeners)
	for i := from; i < to && ctx.Err() == nil; i++ {
		g.Go(func() error {
			session, err := s.clients[i%len(s.clients)].Open(ctx, baton.OpenOptions{TTL: 24 * time.Hour})
			if err != nil {
				return err
			}
			if _, err := session.Put(ctx, keyRegister, s.value); err != nil {
				return err
			}
			return session.Detach(ctx)
		})
	}
	return g.Wait()
}

// writes measures the load of `--op put`.
func (s *scaler) writes(ctx context.Context, sessions int) (scaleWrites, error) {
	s.p.note("writing for %s beside %d sessions", s.duration, sessions)
	s.hist, s.errors = hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits), 0
	cpu := s.f.cpuBut(nil)
	took := s.run(ctx)
	cpu = s.f.cpuBut(nil) - cpu
	r := s.result(took)
	if r.Ops == 0 {
		return scaleWrites{}, errors.New("no write succeeded")
	}
	return scaleWrites{
		Sessions: sessions, Ops: r.Ops, Errors: r.Errors, LatencyUS: r.LatencyUS,
		NodeCPUUS: float64(cpu.Microseconds()) / float64(r.Ops),
	}, ctx.Err()
}

// heaps are the live heaps of the nodes in bytes, right after their collector ran.
// It runs twice, as pools give up what they hold at the second time.
func (s *scaler) heaps(ctx context.Context) ([]float64, error) {
	var list []float64
	for _, base := range s.http {
		for range 2 {
			if _, err := fetch(ctx, base+"/debug/pprof/heap?gc=1"); err != nil {
				return nil, err
			}
		}
		page, err := fetch(ctx, base+"/metrics")
		if err != nil {
			return nil, err
		}
		v, err := metricOf(page, heapMetric)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// metricOf finds a metric without labels.
func metricOf(page []byte, name string) (float64, error) {
	lines := bufio.NewScanner(bytes.NewReader(page))
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("the node tells no %s", name)
}

// restart kills a node that does not lead, and tells how long it takes from its start
// until it is ready.
func (s *scaler) restart(ctx context.Context) (us int64, err error) {
	st, err := s.f.status(ctx)
	if err != nil {
		return 0, err
	}
	i := 0
	if s.f.nodes[i].name == st.Leader {
		i = 1
	}
	n := s.f.nodes[i]
	s.p.note("killing %s", n.name)
	n.proc.kill()
	begun := time.Now()
	if err := s.f.startNode(n); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("%s was not ready within %s", n.name, readyWithin))
	defer cancel()
	for {
		if _, err := fetch(ctx, s.http[i]+"/readyz"); err == nil {
			return time.Since(begun).Microseconds(), nil
		}
		if err := s.rest(ctx, readyEvery); err != nil {
			return 0, context.Cause(ctx)
		}
	}
}

func printScale(w io.Writer, out scaleJSON) {
	fmt.Fprintf(w, "%d sessions at rest with %d bytes each, opened, written and left in %s\n", out.Sessions, out.ValueBytes, micros(out.FillUS))
	fmt.Fprintf(w, "live heap a session in one node: %.0f bytes\n", out.HeapPerSession)
	for _, r := range []scaleWrites{out.Few, out.Many} {
		fmt.Fprintf(w, "beside %d sessions: %d writes, %d errors, %.1f µs of the nodes' processor time each, p50 %s, p99 %s, max %s\n",
			r.Sessions, r.Ops, r.Errors, r.NodeCPUUS, micros(r.LatencyUS.P50), micros(r.LatencyUS.P99), micros(r.LatencyUS.Max))
	}
	fmt.Fprintf(w, "a write costs %.2f times as much; a killed node was ready %s after its start\n", out.CostRatio, micros(out.RestartUS))
}
