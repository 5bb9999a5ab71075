package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/baton-cluster/baton"
)

// herdWatchEvery is how often herdWatch tells what happens.
const herdWatchEvery = time.Second

// herdWatch tells each second what the clients of a herd do, and their nodes, and
// what the machine had for them.
type herdWatch struct {
	p      *program
	f      *fleet
	v      *survivors
	victim string // user address of the node that is killed

	mu       sync.Mutex
	attempts map[string]int // since the last line, by who was asked and the outcome

	begun time.Time
	last  herdSample
}

// herdSample is what is counted since the beginning.
type herdSample struct {
	dials   baton.ClientStats
	self    time.Duration // processor time
	nodes   map[string]time.Duration
	late    [2]uint64 // goroutines that waited for a processor for longer than herdLate
	packets udpCounts
}

// herdLate is in seconds.
var herdLate = [2]float64{0.1, 1}

// attempt counts one attempt to attach.
func (w *herdWatch) attempt(a baton.Attempt) {
	who, outcome := "others", "attached"
	if a.Addr == w.victim {
		who = "the dead"
	}
	if a.Relay {
		who += " (relay)"
	}
	if a.Err != nil {
		outcome = baton.CodeOf(a.Err).Label()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.attempts == nil {
		w.attempts = map[string]int{}
	}
	w.attempts[who+" "+outcome]++
}

// run prints a line a second until ctx ends, and returns then.
func (w *herdWatch) run(ctx context.Context) {
	w.begun, w.last = time.Now(), w.sample()
	w.drain()
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { w.runNodes(ctx) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(herdWatchEvery):
		}
		w.print(w.sample())
	}
}

func (w *herdWatch) sample() herdSample {
	s := herdSample{dials: w.v.dials(), self: selfCPU(), nodes: map[string]time.Duration{}, packets: readUDPCounts()}
	for _, n := range w.f.nodes {
		if n.proc != nil && !n.proc.ended() {
			s.nodes[n.name] = cpuOf(n.proc.pid())
		}
	}
	waits := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(waits)
	h := waits[0].Value.Float64Histogram()
	for i, n := range h.Counts {
		for k, limit := range herdLate {
			if h.Buckets[i] >= limit {
				s.late[k] += n
			}
		}
	}
	return s
}

// drain returns the attempts since it was called last.
func (w *herdWatch) drain() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, k := range slices.Sorted(maps.Keys(w.attempts)) {
		list = append(list, fmt.Sprintf("%s %d", k, w.attempts[k]))
	}
	clear(w.attempts)
	return strings.Join(list, ", ")
}

func (w *herdWatch) print(s herdSample) {
	l := w.last
	w.last = s
	nodes := ""
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		nodes += fmt.Sprintf(" %s %.2f", name, (s.nodes[name] - l.nodes[name]).Seconds())
	}
	w.p.note("%5.1f s clients: dials %d done, %d failed, %d of them turned away; attempts: %s; processor seconds: clients %.2f%s; clients' goroutines late by > %.1f s %d, > %.0f s %d; datagrams: %d in, %d to no port, %d overflown",
		time.Since(w.begun).Seconds(), s.dials.Full+s.dials.ZeroRTT-l.dials.Full-l.dials.ZeroRTT, s.dials.Failed-l.dials.Failed, s.dials.Refused-l.dials.Refused,
		w.drain(), (s.self - l.self).Seconds(), nodes, herdLate[0], s.late[0]-l.late[0], herdLate[1], s.late[1]-l.late[1],
		s.packets.in-l.packets.in, s.packets.noPort-l.packets.noPort, s.packets.overflown-l.packets.overflown)
}

// runNodes asks the nodes meanwhile, which may take long.
func (w *herdWatch) runNodes(ctx context.Context) {
	for ctx.Err() == nil {
		asked := time.Now()
		st, err := w.f.status(ctx)
		line := fmt.Sprintf("leader %s, term %d", st.Leader, st.Term)
		for _, n := range st.Nodes {
			line += fmt.Sprintf("; %s %s, lease %s, connections %d open, made %d full, %d resumed, %d turned away, %d waited at most",
				n.Name, n.State, micros(n.LeaseLeftUS), n.Conns.Open, n.Conns.Full, n.Conns.Resumed+n.Conns.ZeroRTT, n.Conns.Refused, n.Conns.WaitingMost)
		}
		if err != nil {
			line = err.Error()
		}
		w.p.note("%5.1f s nodes, asked for %s: %s", time.Since(w.begun).Seconds(), micros(time.Since(asked).Microseconds()), line)
		select {
		case <-ctx.Done():
		case <-time.After(herdWatchEvery):
		}
	}
}

// udpCounts are the machine's datagrams: taken in, for a port that nobody had, and
// lost as a socket's buffer was full.
type udpCounts struct{ in, noPort, overflown int64 }

// readUDPCounts is zero where the system does not tell.
func readUDPCounts() (c udpCounts) {
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return c
	}
	var skip int64
	for line := range strings.Lines(string(b)) {
		if n, _ := fmt.Sscanf(line, "Udp: %d %d %d %d %d", &c.in, &c.noPort, &skip, &skip, &c.overflown); n == 5 {
			break
		}
	}
	return c
}
