package main

import (
	"slices"
	"testing"
	"time"
)

// TestProcessors: one for work that fits for long enough, all for work that does not,
// and no change back and forth between the two bounds.
func TestProcessors(t *testing.T) {
	work := func(part float64) observed {
		return observed{time: looksEvery, cpu: time.Duration(part * float64(looksEvery))}
	}
	calm := slices.Repeat([]observed{work(fits)}, calmLooks)
	after := func(more ...observed) []observed { return slices.Concat(calm, more) }
	late, slow := work(0), work(0)
	late.time += lateMax + 1
	slow.disk, slow.writes = 3*diskMax+1, 3
	large, quick := work(0), work(0)
	large.heap = heapMax + 1
	quick.disk, quick.writes = 3*diskMax, 3
	for name, c := range map[string]struct {
		looks []observed
		one   bool
	}{
		"at first":              {nil, false},
		"not long enough":       {calm[1:], false},
		"long enough":           {calm, true},
		"interrupted":           {slices.Concat(calm[1:], []observed{work(fits + 0.01)}, calm[1:]), false},
		"more, and fits still":  {after(work(full), work(full)), true},
		"more than fits":        {after(work(full + 0.01)), false},
		"between, and was more": {after(slices.Concat([]observed{work(full + 0.01)}, slices.Repeat([]observed{work(full)}, 2*calmLooks))...), false},
		"less again":            {after(slices.Concat([]observed{work(full + 0.01)}, calm)...), true},
		"late once":             {after(late, work(0), late), true},
		"late twice":            {after(late, late), false},
		"late all the time":     {slices.Repeat([]observed{late}, 3*calmLooks), false},
		"a slow disk":           {after(slow), false},
		"a quick disk":          {after(quick), true},
		"a large heap":          {after(large), false},
		"busy by the disk":      {after(observed{time: looksEvery, disk: looksEvery, writes: 1000}), false},
	} {
		t.Run(name, func(t *testing.T) {
			var p processors
			for _, o := range c.looks {
				before := p.one
				if changed := p.look(o); changed != (p.one != before) {
					t.Fatalf("changed: %v, from %v to %v", changed, before, p.one)
				}
			}
			if p.one != c.one {
				t.Fatalf("one: %v, want %v", p.one, c.one)
			}
		})
	}
}
