package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Environment of a run; see the Makefile's sim.
const (
	envSeeds = "BATON_SIM_SEEDS" // "1,2,7-12"
	envHours = "BATON_SIM_HOURS" // virtual, for each seed
	envGrade = "BATON_SIM_GRADE" // light or whole
)

const (
	seedDefault  = "1"
	hoursDefault = "0.05"
)

// result is what a run came to.
type result struct {
	Hours  float64
	Ops    int
	Moves  int
	Faults map[string]int // moves and how streams ended are not among them
	Ended  map[string]int // streams, by how
	Failed map[string]int // calls, by why
}

// resultMark begins the line with which a seed's process tells its result.
const resultMark = "sim-result "

func (w *world) result(ledgers map[string]*ledger) result {
	r := result{Hours: time.Since(w.start).Hours(), Faults: map[string]int{}, Ended: map[string]int{}, Failed: map[string]int{}}
	for _, l := range ledgers {
		r.Ops += l.calls + l.reads
		for k, n := range l.errs {
			r.Failed[k] += n
		}
	}
	for k, n := range w.faults {
		switch how, stream := strings.CutPrefix(k, "stream-"); {
		case stream:
			r.Ended[how] += n
		case k == "moved":
			r.Moves += n
		default:
			r.Faults[k] += n
		}
	}
	return r
}

func (r *result) add(o result) {
	r.Hours, r.Ops, r.Moves = r.Hours+o.Hours, r.Ops+o.Ops, r.Moves+o.Moves
	for _, sum := range []struct {
		to *map[string]int
		of map[string]int
	}{{&r.Faults, o.Faults}, {&r.Ended, o.Ended}, {&r.Failed, o.Failed}} {
		if *sum.to == nil {
			*sum.to = map[string]int{}
		}
		for k, n := range sum.of {
			(*sum.to)[k] += n
		}
	}
}

func (r result) String() string {
	n := 0
	for k := range maps.Keys(r.Faults) {
		n += r.Faults[k]
	}
	return fmt.Sprintf("%.2f virtual hours, %d operations, %d moves, %d faults %v, failed %v, streams ended %v",
		r.Hours, r.Ops, r.Moves, n, r.Faults, r.Failed, r.Ended)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// replay is the command that runs a seed again.
func replay(g string, seed uint64, hours string) string {
	return fmt.Sprintf("make sim GRADE=%s SEEDS=%d HOURS=%s", g, seed, hours)
}

// TestSim runs a cluster for each seed: in this process, where no seeds are named,
// else in one of its own each, as many at a time as there are processors.
func TestSim(t *testing.T) {
	hours := env(envHours, hoursDefault)
	names := slices.Sorted(maps.Keys(grades))
	if g := os.Getenv(envGrade); g != "" {
		names = []string{g}
	}
	for _, name := range names {
		if _, ok := grades[name]; !ok {
			t.Fatalf("%s is %q: want light or whole", envGrade, name)
		}
		t.Run(name, func(t *testing.T) {
			if os.Getenv(envSeeds) == "" {
				for _, seed := range parseSeeds(t, seedDefault) {
					t.Log(runSeed(t, grades[name], seed, hours))
				}
				return
			}
			runAll(t, name, parseSeeds(t, os.Getenv(envSeeds)), hours)
		})
	}
}

// runAll runs each seed in a process of its own: what ends one, as a panic of
// raft's would, tells of that seed only. One processor each costs least in all.
func runAll(t *testing.T, name string, list []uint64, hours string) {
	var mu sync.Mutex
	var sum result
	var failed []string
	t.Run("seeds", func(t *testing.T) {
		for _, seed := range list {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				mu.Lock()
				enough := len(failed) > 0 && failFast()
				mu.Unlock()
				if enough {
					t.Skip("another seed has failed")
				}
				began := time.Now()
				r, out, err := child(name, seed, hours)
				mu.Lock()
				defer mu.Unlock()
				sum.add(r)
				if err != nil {
					failed = append(failed, replay(name, seed, hours))
					t.Errorf("%v\n%s", err, out)
				}
				t.Logf("seed %d, %.0f s: %v", seed, time.Since(began).Seconds(), r)
			})
		}
	})
	t.Logf("%s: %v", name, sum)
	for _, f := range failed {
		t.Logf("FAILED, replay with: %s", f)
	}
}

// failFast reports whether go test was told to stop at the first failure.
func failFast() bool { return flag.Lookup("test.failfast").Value.String() == "true" }

func child(name string, seed uint64, hours string) (r result, out string, err error) {
	cmd := exec.CommandContext(context.Background(), os.Args[0], "-test.run", "^TestSeed$", "-test.v", "-test.timeout", "2h")
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all", "GOMAXPROCS=1", "GOGC="+env("GOGC", "400"),
		envGrade+"="+name, envHours+"="+hours, envSeeds+"="+strconv.FormatUint(seed, 10))
	b, err := cmd.CombinedOutput()
	for line := range bytes.Lines(b) {
		if _, told, ok := strings.Cut(string(line), resultMark); ok {
			_ = json.Unmarshal([]byte(told), &r)
		}
	}
	return r, string(b), err
}

// TestSeed is one seed in this process.
func TestSeed(t *testing.T) {
	g, ok := grades[os.Getenv(envGrade)]
	if !ok || os.Getenv(envSeeds) == "" {
		t.Skip("TestSim runs it")
	}
	for _, seed := range parseSeeds(t, os.Getenv(envSeeds)) {
		b, err := json.Marshal(runSeed(t, g, seed, env(envHours, hoursDefault)))
		must(t, err)
		fmt.Printf("\n%s%s\n", resultMark, b)
	}
}

func runSeed(t *testing.T, g grade, seed uint64, hours string) (r result) {
	t.Logf("replay with: %s", replay(g.name, seed, hours))
	n, err := strconv.ParseFloat(hours, 64)
	must(t, err)
	synctest.Test(t, func(t *testing.T) { r = simulate(t, g, seed, time.Duration(n*float64(time.Hour))) })
	return r
}

func parseSeeds(t *testing.T, list string) (all []uint64) {
	for part := range strings.SplitSeq(list, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		from, err := strconv.ParseUint(lo, 10, 64)
		must(t, err)
		to := from
		if ranged {
			to, err = strconv.ParseUint(hi, 10, 64)
			must(t, err)
		}
		for s := from; s <= to; s++ {
			all = append(all, s)
		}
	}
	return all
}
