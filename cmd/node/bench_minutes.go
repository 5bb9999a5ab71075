package main

import (
	"fmt"
	"io"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// merge adds what one client measured in one minute of the run, from 0.
func (b *bencher) merge(minute int, hist *hdrhistogram.Histogram) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.minutes) <= minute {
		b.minutes = append(b.minutes, hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits))
	}
	b.minutes[minute].Merge(hist)
	b.hist.Merge(hist)
}

// minutesP99 is in microseconds; empty where there are no two minutes to compare.
func (b *bencher) minutesP99() []int64 {
	p99 := []int64{}
	for _, h := range b.minutes {
		p99 = append(p99, h.ValueAtQuantile(99))
	}
	if len(p99) < 2 {
		return p99[:0]
	}
	return p99
}

func printMinutes(w io.Writer, p99 []int64) {
	if len(p99) == 0 {
		return
	}
	fmt.Fprint(w, "p99 minute by minute:")
	for _, us := range p99 {
		fmt.Fprintf(w, " %s", micros(us))
	}
	fmt.Fprintln(w)
}
