package search

import (
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"strings"
	"sync"
)

// Step is one step from a state: the state after it, and how to tell it.
type Step[S comparable] struct {
	Next S
	// Fair ranks the step among those that happen if nothing else goes wrong; the
	// lowest rank is the one that does. 0: it is a fault, or needs no telling.
	Fair uint8
	// Kind and Args tell the step; the model's Tell makes words of them.
	Kind uint8
	Args [3]uint8
}

// Model is what is searched. Its functions are called from several goroutines.
type Model[S comparable] interface {
	Init() S
	// Steps appends to out every step that s allows.
	Steps(s *S, out []Step[S]) []Step[S]
	// Check says what is wrong with s, "" if nothing is.
	Check(s *S) string
	// Settled reports that s is an end: nothing is owed to anybody.
	Settled(s *S) bool
	Tell(before *S, step *Step[S]) string
}

// Limits end a search early. 0: no limit.
type Limits struct {
	States int
	Depth  int
}

// Report is what a search found.
type Report struct {
	States, Edges int
	Depth         int
	// Complete: every state within the model's own bounds was visited.
	Complete bool
	// Settled counts the states that are an end.
	Settled int
	// Missed bounds the chance that any two states had one fingerprint.
	Missed float64
	// Wrong says what is wrong, "" if nothing was found, and Story is the shortest
	// way there, a line a step.
	Wrong string
	Story []string
}

// Err is the violation as an error, nil if there is none.
func (r *Report) Err() error {
	if r.Wrong == "" {
		return nil
	}
	return fmt.Errorf("%s\n  %s", r.Wrong, strings.Join(r.Story, "\n  "))
}

// shardBits is how many bits of a fingerprint choose its shard. More shards than
// any machine has processors keep them from waiting for each other.
const shardBits = 6

// A ref is a known state's number: its place in its shard above, the shard below.
type ref uint32

const noRef = ^ref(0)

// errFull: more states than a ref can number.
var errFull = errors.New("search: more than 2^32 states")

// shard is a part of the set of known states.
type shard struct {
	mu    sync.Mutex
	slots []uint32 // open addressing: place in prints, plus one; 0: free
	// By place: fingerprint, the state it was first reached from, and the one
	// that follows it if nothing else goes wrong (itself: it is an end).
	prints []uint64
	parent []ref
	fair   []ref
}

type searcher[S comparable] struct {
	m      Model[S]
	limits Limits
	seed   maphash.Seed
	shards [1 << shardBits]shard
}

// found is a known state that is to be looked at.
type found[S comparable] struct {
	s  S
	at ref
}

// Run searches m.
func Run[S comparable](m Model[S], l Limits) *Report {
	x := &searcher[S]{m: m, limits: l, seed: maphash.MakeSeed()}
	first := m.Init()
	at, _ := x.learn(x.print(&first), noRef)
	rep := &Report{Complete: true}
	if wrong := m.Check(&first); wrong != "" {
		rep.Wrong, rep.States = wrong, 1
		return rep
	}
	layer := []found[S]{{first, at}}
	for len(layer) > 0 && rep.Wrong == "" {
		if l.Depth > 0 && rep.Depth >= l.Depth || l.States > 0 && x.known() >= l.States {
			rep.Complete = false
			break
		}
		layer = x.expand(layer, rep)
		if len(layer) > 0 {
			rep.Depth++
		}
	}
	rep.States = x.known()
	n := float64(rep.States)
	rep.Missed = n * n / 2 / (1 << 63) / 2
	if rep.Wrong == "" && rep.Complete {
		x.progress(rep)
	}
	return rep
}

func (x *searcher[S]) print(s *S) uint64 { return maphash.Comparable(x.seed, *s) }

func (x *searcher[S]) known() (n int) {
	for i := range x.shards {
		n += len(x.shards[i].prints)
	}
	return n
}

// learn finds a fingerprint among the known ones, or adds it.
func (x *searcher[S]) learn(print uint64, parent ref) (at ref, fresh bool) {
	i := uint32(print) & (1<<shardBits - 1)
	sh := &x.shards[i]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if 4*len(sh.prints) >= 3*len(sh.slots) {
		sh.grow()
	}
	mask := uint64(len(sh.slots) - 1)
	for j := print >> shardBits & mask; ; j = (j + 1) & mask {
		place := sh.slots[j]
		if place == 0 {
			if len(sh.prints) >= 1<<(32-shardBits)-1 {
				panic(errFull)
			}
			sh.prints = append(sh.prints, print)
			sh.parent = append(sh.parent, parent)
			sh.fair = append(sh.fair, noRef)
			sh.slots[j] = uint32(len(sh.prints))
			return ref(len(sh.prints)-1)<<shardBits | ref(i), true
		}
		if sh.prints[place-1] == print {
			return ref(place-1)<<shardBits | ref(i), false
		}
	}
}

func (sh *shard) grow() {
	slots := make([]uint32, max(1024, 2*len(sh.slots)))
	mask := uint64(len(slots) - 1)
	for place, print := range sh.prints {
		j := print >> shardBits & mask
		for slots[j] != 0 {
			j = (j + 1) & mask
		}
		slots[j] = uint32(place + 1)
	}
	sh.slots = slots
}

func (x *searcher[S]) of(r ref) (*shard, int) {
	return &x.shards[r&(1<<shardBits-1)], int(r >> shardBits)
}

// chunk is how many states one goroutine takes at a time.
const chunk = 256

// expand takes every step from every state of a layer, and returns the states
// that were not known before.
func (x *searcher[S]) expand(layer []found[S], rep *Report) []found[S] {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next [][]found[S]
	taken, at := 0, noRef
	for range min(runtime.GOMAXPROCS(0), (len(layer)+chunk-1)/chunk) {
		wg.Go(func() {
			w := expander[S]{searcher: x}
			for {
				mu.Lock()
				part := layer[taken:min(taken+chunk, len(layer))]
				taken += len(part)
				stop := rep.Wrong != ""
				mu.Unlock()
				if len(part) == 0 || stop {
					break
				}
				for i := range part {
					w.expand(&part[i])
				}
				if w.wrong != "" {
					break
				}
			}
			mu.Lock()
			defer mu.Unlock()
			next = append(next, w.out)
			rep.Edges += w.edges
			rep.Settled += w.settled
			if w.wrong != "" && rep.Wrong == "" {
				rep.Wrong, at = w.wrong, w.at
			}
		})
	}
	wg.Wait()
	if at != noRef {
		rep.Story = x.story(at) // only now, as nobody adds to the shards any more
	}
	total := 0
	for _, n := range next {
		total += len(n)
	}
	all := make([]found[S], 0, total)
	for _, n := range next {
		all = append(all, n...)
	}
	return all
}

// expander is one goroutine's part of a layer.
type expander[S comparable] struct {
	*searcher[S]
	steps          []Step[S]
	out            []found[S]
	edges, settled int
	wrong          string
	at             ref
}

func (w *expander[S]) expand(f *found[S]) {
	w.steps = w.m.Steps(&f.s, w.steps[:0])
	w.edges += len(w.steps)
	fair := noRef
	rank := ^uint8(0)
	for i := range w.steps {
		st := &w.steps[i]
		at, fresh := w.learn(w.print(&st.Next), f.at)
		if st.Fair != 0 && st.Fair < rank {
			fair, rank = at, st.Fair
		}
		if !fresh {
			continue
		}
		if wrong := w.m.Check(&st.Next); wrong != "" && w.wrong == "" {
			w.wrong, w.at = wrong, at
		}
		w.out = append(w.out, found[S]{st.Next, at})
	}
	if w.m.Settled(&f.s) {
		w.settled++
		fair = f.at
	}
	sh, place := w.of(f.at)
	sh.mu.Lock()
	sh.fair[place] = fair
	sh.mu.Unlock()
}

// progress sees to it that from every state the fair steps lead to an end.
func (x *searcher[S]) progress(rep *Report) {
	const (
		unseen = iota
		onPath
		good
	)
	var colours [1 << shardBits][]uint8
	for i := range x.shards {
		colours[i] = make([]uint8, len(x.shards[i].prints))
	}
	colour := func(r ref) *uint8 { return &colours[r&(1<<shardBits-1)][r>>shardBits] }
	var path []ref
	for i := range x.shards {
		for place := range x.shards[i].prints {
			path = path[:0]
			r := ref(place)<<shardBits | ref(i)
			for *colour(r) == unseen {
				*colour(r) = onPath
				path = append(path, r)
				sh, p := x.of(r)
				next := sh.fair[p]
				if next == r {
					*colour(r) = good
				} else if next == noRef {
					rep.Wrong = "from here nothing leads to an end: what is owed is never given"
					rep.Story = x.story(r)
					return
				} else {
					r = next
				}
			}
			if *colour(r) == onPath {
				rep.Wrong = "from here, if nothing else goes wrong, it goes round in circles: what is owed is never given"
				rep.Story = x.circle(r)
				return
			}
			for _, r := range path {
				*colour(r) = good
			}
		}
	}
}

// story tells the shortest way to a state.
func (x *searcher[S]) story(to ref) []string {
	lines, _ := x.replay(x.chain(to))
	return lines
}

// circle tells the way to a state, and once around from there.
func (x *searcher[S]) circle(at ref) []string {
	chain := x.chain(at)
	for r := at; ; {
		sh, place := x.of(r)
		r = sh.fair[place]
		chain = append(chain, r)
		if r == at {
			break
		}
	}
	lines, _ := x.replay(chain)
	return lines
}

func (x *searcher[S]) chain(to ref) []ref {
	var back []ref
	for r := to; r != noRef; {
		back = append(back, r)
		sh, place := x.of(r)
		r = sh.parent[place]
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}

// replay takes the steps that lead from state to state of the chain.
func (x *searcher[S]) replay(chain []ref) (lines []string, s S) {
	s = x.m.Init()
	for _, r := range chain[1:] {
		sh, place := x.of(r)
		want := sh.prints[place]
		for _, st := range x.m.Steps(&s, nil) {
			if x.print(&st.Next) == want {
				lines = append(lines, x.m.Tell(&s, &st))
				s = st.Next
				break
			}
		}
	}
	return lines, s
}

// Follow takes the steps of a story, as Run tells it. It returns what is wrong
// with the state in which it went wrong first, "" if it never did. A step that
// the model does not allow there is left out and returned in skipped: a story
// that goes wrong where a rule is missing cannot be followed where it is kept.
func Follow[S comparable](m Model[S], story []string) (wrong string, skipped []string, s S) {
	s = m.Init()
	for _, line := range story {
		taken := false
		for _, st := range m.Steps(&s, nil) {
			if m.Tell(&s, &st) == line {
				s, taken = st.Next, true
				break
			}
		}
		if !taken {
			skipped = append(skipped, line)
			continue
		}
		if wrong = m.Check(&s); wrong != "" {
			return wrong, skipped, s
		}
	}
	return "", skipped, s
}
