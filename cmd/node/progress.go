package main

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// barEvery and lineEvery are how often the state of things is shown on a
	// terminal, and otherwise.
	barEvery  = 200 * time.Millisecond
	lineEvery = 5 * time.Second
)

// progress shows how a demo or bench goes: lines on stderr, and on a terminal a
// last line that is rewritten.
type progress struct {
	p      *program
	ledger *Ledger
	begun  time.Time
	quit   chan struct{}
	done   chan struct{}
	once   sync.Once

	mu  sync.Mutex
	bar bool // the last line is a bar
}

func newProgress(p *program, l *Ledger) *progress {
	s := &progress{p: p, ledger: l, begun: time.Now(), quit: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *progress) since() time.Duration { return time.Since(s.begun) }

func (s *progress) run() {
	defer close(s.done)
	if s.p.global.quiet {
		return
	}
	terminal := isTerminal(s.p.Stderr)
	every := lineEvery
	if terminal {
		every = barEvery
	}
	t := time.NewTicker(every)
	defer t.Stop()
	last, at := 0, time.Now()
	for {
		select {
		case <-s.quit:
			return
		case <-t.C:
		}
		acked := s.ledger.ackedOps()
		rate := float64(acked-last) / time.Since(at).Seconds()
		last, at = acked, time.Now()
		if terminal {
			s.show(acked, rate)
		} else if acked > 0 {
			s.line("", "%d acknowledged, %.0f/s", acked, rate)
		}
	}
}

// show rewrites the last line.
func (s *progress) show(acked int, rate float64) {
	const width = 30
	part := min(1, s.since().Seconds()/75)
	full := int(part * width)
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.p.Stderr, "\r\x1b[K%6.1fs  [%s%s]  %d acknowledged, %.0f/s", s.since().Seconds(), strings.Repeat("=", full), strings.Repeat(" ", width-full), acked, rate)
	s.bar = true
}

// line prints a line that stays.
func (s *progress) line(what, format string, args ...any) {
	if s.p.global.quiet {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
	fmt.Fprintf(s.p.Stderr, "%6.1fs  %-9s %s\n", s.since().Seconds(), what, fmt.Sprintf(format, args...))
}

// wipe removes the bar. The caller holds mu.
func (s *progress) wipe() {
	if s.bar {
		fmt.Fprint(s.p.Stderr, "\r\x1b[K")
		s.bar = false
	}
}

func (s *progress) close() {
	s.once.Do(func() { close(s.quit) })
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
}
