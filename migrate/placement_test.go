package migrate

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var genCandidates = rapid.Custom(func(t *rapid.T) []Candidate {
	n := rapid.IntRange(1, 12).Draw(t, "workers")
	ws := make([]Candidate, n)
	for i := range ws {
		ws[i] = Candidate{
			ID: fmt.Sprintf("w%d", i), Incarnation: uint64(i),
			Load:     rapid.IntRange(0, 50).Draw(t, "load"),
			Capacity: rapid.Uint64Range(0, 8).Draw(t, "capacity"),
			Eligible: rapid.IntRange(0, 3).Draw(t, "eligible") > 0,
		}
	}
	return ws
})

// There is a place whenever anyone is eligible; it is eligible, below its bound,
// and does not depend on the order of the workers.
func TestPlaceProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ws := genCandidates.Draw(t, "workers")
		session := rapid.String().Draw(t, "session")
		factor := rapid.Float64Range(0.5, 4).Draw(t, "factor")
		i, ok := Place(session, ws, factor)
		if any := slices.ContainsFunc(ws, func(c Candidate) bool { return c.Eligible }); ok != any {
			t.Fatalf("ok %v with an eligible one %v", ok, any)
		}
		if !ok {
			return
		}
		if !ws[i].Eligible || ws[i].Load >= Bound(ws, i, factor) {
			t.Fatalf("placed on %+v, bound %d", ws[i], Bound(ws, i, factor))
		}
		perm := rapid.Permutation(ws).Draw(t, "order")
		if j, _ := Place(session, perm, factor); perm[j].ID != ws[i].ID {
			t.Fatalf("on %s, in another order on %s", ws[i].ID, perm[j].ID)
		}
	})
}

// Filling an empty cluster never breaks the bound.
func TestPlaceBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ws := genCandidates.Draw(t, "workers")
		capacity := 0.0
		for i := range ws {
			ws[i].Load, ws[i].Eligible = 0, true
			capacity += ws[i].weight()
		}
		n := rapid.IntRange(1, 500).Draw(t, "sessions")
		for s := range n {
			i, ok := Place(fmt.Sprint("s", s), ws, PlacementFactor)
			if !ok {
				t.Fatal("no place")
			}
			ws[i].Load++
		}
		for _, w := range ws {
			if limit := math.Ceil(PlacementFactor * float64(n) * w.weight() / capacity); float64(w.Load) > max(limit, 1) {
				t.Fatalf("%+v has more than %v of %d", w, limit, n)
			}
		}
	})
}

// A worker that leaves moves only its own sessions, one that comes takes only
// what it wins, as long as no bound is hit.
func TestPlaceStability(t *testing.T) {
	const sessions, unbounded = 2000, 1000
	ws := make([]Candidate, 8)
	for i := range ws {
		ws[i] = Candidate{ID: fmt.Sprint("w", i), Eligible: true, Capacity: uint64(i%3 + 1)}
	}
	place := func() []string {
		at := make([]string, sessions)
		for s := range at {
			i, ok := Place(fmt.Sprint("s", s), ws, unbounded)
			if !ok {
				t.Fatal("no place")
			}
			at[s] = ws[i].ID
		}
		return at
	}
	before := place()
	ws[3].Eligible = false
	after := place()
	moved := 0
	for s := range before {
		if before[s] != after[s] {
			moved++
			if before[s] != "w3" {
				t.Errorf("session %d moved from %s to %s, though only w3 left", s, before[s], after[s])
			}
		}
	}
	if moved == 0 {
		t.Error("w3 had nothing")
	}
}

// The shares follow the capacities.
func TestPlaceWeights(t *testing.T) {
	const sessions = 20000
	ws := []Candidate{{ID: "a", Capacity: 1, Eligible: true}, {ID: "b", Capacity: 2, Eligible: true}, {ID: "c", Capacity: 5, Eligible: true}}
	got := make([]int, len(ws))
	for s := range sessions {
		i, _ := Place(fmt.Sprint("session-", s), ws, 1000)
		got[i]++
	}
	for i, w := range ws {
		want := sessions * int(w.Capacity) / 8
		if got[i] < want*9/10 || got[i] > want*11/10 {
			t.Errorf("%s got %d of %d, its share is %d", w.ID, got[i], sessions, want)
		}
	}
}

func TestPlaceOddNumbers(t *testing.T) {
	for _, factor := range []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64} {
		ws := []Candidate{{ID: "a", Load: math.MaxInt32, Capacity: math.MaxUint64, Eligible: true}, {ID: "b", Load: -5, Eligible: true}}
		if _, ok := Place("s", ws, factor); !ok {
			t.Errorf("factor %v: no place", factor)
		}
	}
	if _, ok := Place("s", nil, 1); ok {
		t.Error("a place among none")
	}
}

// 1.25 × 120 × 7/25 is 42, not a rounding error more.
func TestBoundIsExact(t *testing.T) {
	ws := []Candidate{{ID: "a", Capacity: 7, Eligible: true, Load: 60}, {ID: "b", Capacity: 18, Eligible: true, Load: 59}, {ID: "c", Load: 9}}
	if got := Bound(ws, 0, PlacementFactor); got != 42 {
		t.Errorf("got %d", got)
	}
	if got := Bound(ws[2:], 0, PlacementFactor); got != 0 {
		t.Errorf("nobody eligible: got %d", got)
	}
}

func BenchmarkPlace(b *testing.B) {
	ws := make([]Candidate, 100)
	for i := range ws {
		ws[i] = Candidate{ID: fmt.Sprint("w", i), Eligible: true, Load: i}
	}
	for b.Loop() {
		Place("some-session", ws, PlacementFactor)
	}
}
