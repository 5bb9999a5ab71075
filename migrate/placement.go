package migrate

import (
	"cmp"
	"math"

	"github.com/cespare/xxhash/v2"
)

// PlacementFactor is how far above its fair share a worker may be filled before
// a session goes to its next choice: 1.25 keeps most sessions at their first
// choice and no worker a quarter above its share.
const PlacementFactor = 1.25

// loadMax keeps a bound inside an int whatever the factor.
const loadMax = 1 << 53

// Candidate is a worker that a session could be placed on.
type Candidate struct {
	ID          string
	Incarnation uint64
	// Load is how many sessions it owns.
	Load int
	// Capacity is its relative weight; 0 counts as 1.
	Capacity uint64
	// Eligible is false for one that must get nothing.
	Eligible bool
	// Zone is where it stands, for zone spread.
	Zone string
}

// Place chooses a worker for session: of the eligible ones that are below their
// bound, the one that ranks highest by weighted rendezvous hashing. The bound is
// ceil(factor × (total load + 1) × the worker's share of the capacity), factor
// at least 1, so there is always one below it. A worker that comes or goes moves
// only the sessions that it gains or loses, unless bounds are hit. The order of
// workers does not matter. ok is false if none is eligible.
//
// Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates",
// 1998; Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded
// Loads", 2018.
func Place(session string, workers []Candidate, factor float64) (index int, ok bool) {
	total, capacity := 0, 0.0
	for i := range workers {
		if w := &workers[i]; w.Eligible {
			total += max(w.Load, 0)
			capacity += w.weight()
		}
	}
	if capacity == 0 {
		return 0, false
	}
	best, bestScore := -1, 0.0
	for i := range workers {
		w := &workers[i]
		if !w.Eligible || w.Load >= w.bound(total, capacity, factor) {
			continue
		}
		score := w.score(session)
		if best < 0 || score > bestScore ||
			score == bestScore && cmp.Compare(w.ID, workers[best].ID) < 0 {
			best, bestScore = i, score
		}
	}
	return best, best >= 0
}

// Successor is the worker that is to take session when its owner dies: of the
// eligible ones but owner, the one that ranks highest by rendezvous hashing. It
// depends on nothing else, so all nodes that know the same workers name the same
// one. ok is false if there is none.
func Successor(session, owner string, workers []Candidate) (index int, ok bool) {
	best, bestScore := -1, 0.0
	for i := range workers {
		w := &workers[i]
		if !w.Eligible || w.ID == owner {
			continue
		}
		score := w.score(session)
		if best < 0 || score > bestScore || score == bestScore && cmp.Compare(w.ID, workers[best].ID) < 0 {
			best, bestScore = i, score
		}
	}
	return best, best >= 0
}

// Bound is the load that Place does not fill worker i beyond.
func Bound(workers []Candidate, i int, factor float64) int {
	total, capacity := 0, 0.0
	for j := range workers {
		if w := &workers[j]; w.Eligible {
			total += max(w.Load, 0)
			capacity += w.weight()
		}
	}
	if capacity == 0 {
		return 0
	}
	return workers[i].bound(total, capacity, factor)
}

func (c *Candidate) weight() float64 { return float64(max(c.Capacity, 1)) }

func (c *Candidate) bound(total int, capacity, factor float64) int {
	if !(factor >= 1) { // also catches NaN
		factor = 1
	}
	// Divided last: a share that is a whole number must not be rounded past it.
	b := math.Ceil(factor * float64(total+1) * c.weight() / capacity)
	return int(min(max(b, 1), loadMax))
}

// score is −weight / ln(u), u in (0, 1) from the hash of session and worker: the
// highest is each worker's with a probability in proportion to its weight.
func (c *Candidate) score(session string) float64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(session)
	_, _ = d.Write([]byte{0}) // ids hold no zero byte: "ab"+"c" is not "a"+"bc"
	_, _ = d.WriteString(c.ID)
	u := (float64(d.Sum64()>>11) + 0.5) / (1 << 53)
	return -c.weight() / math.Log(u)
}
