package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// Latencies are recorded from 1 µs to a minute, to three digits.
	latencyMinUS, latencyMaxUS, latencyDigits = 1, 60_000_000, 3
	// shards is how many histograms the clients share: one each would be many
	// megabytes, one for all a contended lock.
	shards = 16
	// failedMax of the operations of a turn may fail; above, it measured nothing.
	failedMax = 0.01
)

// driven is what came of driving a load.
type driven struct {
	hist   *hdrhistogram.Histogram // of the operations that succeeded
	failed int64
	took   time.Duration
}

type shard struct {
	mu     sync.Mutex
	hist   *hdrhistogram.Histogram
	failed int64
	err    error // the last
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(latencyMinUS, latencyMaxUS, latencyDigits)
}

// drive runs clients, each a closed loop of do, for d.
func drive(ctx context.Context, clients int, d time.Duration, do func(ctx context.Context, client int) error) (driven, error) {
	var parts [shards]shard
	for i := range parts {
		parts[i].hist = newHistogram()
	}
	begun := time.Now()
	end := begun.Add(d)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			p := &parts[i%shards]
			for ctx.Err() == nil {
				start := time.Now()
				if !start.Before(end) {
					return
				}
				p.record(start, do(ctx, i))
			}
		})
	}
	wg.Wait()
	out := driven{hist: newHistogram(), took: time.Since(begun)}
	var last error
	for i := range parts {
		out.hist.Merge(parts[i].hist)
		out.failed += parts[i].failed
		if parts[i].err != nil {
			last = parts[i].err
		}
	}
	if err := ctx.Err(); err != nil {
		return out, err
	}
	if n := out.hist.TotalCount(); n == 0 || float64(out.failed) > failedMax*float64(n) {
		return out, fmt.Errorf("%d operations failed, %d did not; the last failure: %w", out.failed, n, last)
	}
	return out, nil
}

func (p *shard) record(start time.Time, err error) {
	us := time.Since(start).Microseconds()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed++
		p.err = err
		return
	}
	_ = p.hist.RecordValue(min(latencyMaxUS, max(latencyMinUS, us)))
}

// corrected adds what a closed loop omits: while one request hung, its client
// would have sent others, one each interval, and they would have waited too.
func corrected(h *hdrhistogram.Histogram, intervalUS int64) *hdrhistogram.Histogram {
	out := newHistogram()
	for _, bar := range h.Distribution() {
		if bar.Count == 0 {
			continue
		}
		_ = out.RecordValues(bar.To, bar.Count)
		for v := bar.To - intervalUS; intervalUS > 0 && v >= intervalUS; v -= intervalUS {
			_ = out.RecordValues(v, bar.Count)
		}
	}
	return out
}
