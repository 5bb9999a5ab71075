package cluster

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts values in buckets that double: bucket i holds [2^(i-1), 2^i).
// It allocates nothing and locks nothing.
type histogram struct {
	counts [40]atomic.Uint64
}

func (h *histogram) add(v uint64) {
	h.counts[min(bits.Len64(v), len(h.counts)-1)].Add(1)
}

// Bucket is one line of a histogram: how many values were at most Max, and
// above the Max of the bucket before.
type Bucket struct {
	Max   uint64 `json:"max"`
	Count uint64 `json:"count"`
}

// buckets returns the lines up to the last that is not empty.
func (h *histogram) buckets() []Bucket {
	var out []Bucket
	last := 0
	for i := range h.counts {
		n := h.counts[i].Load()
		out = append(out, Bucket{Max: 1<<i - 1, Count: n})
		if n > 0 {
			last = i + 1
		}
	}
	return out[:last]
}

// latencies is a histogram of durations with a finer grain: each doubling of a
// microsecond is split in eight, so a quantile is exact to an eighth.
type latencies struct {
	counts [36 * 8]atomic.Uint64
}

func latencyBucket(us uint64) int {
	if us < 8 {
		return int(us)
	}
	exp := bits.Len64(us) - 4 // so that us>>exp is in [8, 16)
	return (exp+1)*8 + int(us>>exp) - 8
}

// latencyMax is the largest value, in microseconds, of a bucket.
func latencyMax(bucket int) uint64 {
	if bucket < 8 {
		return uint64(bucket)
	}
	exp := bucket/8 - 1
	return uint64(bucket%8+9)<<exp - 1
}

func (l *latencies) add(d time.Duration) {
	l.counts[min(latencyBucket(uint64(max(d.Microseconds(), 0))), len(l.counts)-1)].Add(1)
}

// total is how many were added.
func (l *latencies) total() (n uint64) {
	for i := range l.counts {
		n += l.counts[i].Load()
	}
	return n
}

// quantile returns an upper bound of the q-quantile (0 < q ≤ 1), 0 if nothing
// was added.
func (l *latencies) quantile(q float64) time.Duration {
	total := l.total()
	if total == 0 {
		return 0
	}
	want := uint64(q*float64(total) + 0.5)
	var seen uint64
	for i := range l.counts {
		seen += l.counts[i].Load()
		if seen >= max(want, 1) {
			return time.Duration(latencyMax(i)) * time.Microsecond
		}
	}
	return time.Duration(latencyMax(len(l.counts)-1)) * time.Microsecond
}
