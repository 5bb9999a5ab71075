package main

import (
	"slices"
	"testing"
)

// TestProcessors: one for work that fits for long enough, all for work that does not,
// and no change back and forth between the two bounds.
func TestProcessors(t *testing.T) {
	calm := slices.Repeat([]float64{fits}, calmLooks)
	for name, c := range map[string]struct {
		work []float64
		one  bool
	}{
		"at first":              {nil, false},
		"not long enough":       {calm[1:], false},
		"long enough":           {calm, true},
		"interrupted":           {slices.Concat(calm[1:], []float64{fits + 0.01}, calm[1:]), false},
		"more, and fits still":  {slices.Concat(calm, []float64{full, full}), true},
		"more than fits":        {slices.Concat(calm, []float64{full + 0.01}), false},
		"between, and was more": {slices.Concat(calm, []float64{full + 0.01}, slices.Repeat([]float64{full}, 2*calmLooks)), false},
		"less again":            {slices.Concat(calm, []float64{full + 0.01}, calm), true},
	} {
		t.Run(name, func(t *testing.T) {
			var p processors
			for _, w := range c.work {
				before := p.one
				if changed := p.look(w); changed != (p.one != before) {
					t.Fatalf("changed: %v, from %v to %v", changed, before, p.one)
				}
			}
			if p.one != c.one {
				t.Fatalf("one: %v, want %v", p.one, c.one)
			}
		})
	}
}
