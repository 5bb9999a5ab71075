package check

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

const limit = 10 * time.Second

func op(kind history.Kind, arg, ret string, call, back int64, outcome history.Outcome) history.Op {
	return history.Op{Session: "s", Key: "k", Kind: kind, Arg: arg, Ret: ret, Call: call, Return: back, Outcome: outcome}
}

func TestLinear(t *testing.T) {
	const ok, unknown, fail = history.OK, history.Unknown, history.Fail
	cas := func(from, to, ret string, call, back int64, o history.Outcome) history.Op {
		c := op(history.CAS, to, ret, call, back, o)
		c.Old = from
		return c
	}
	for _, tc := range []struct {
		name string
		ops  []history.Op
		bad  bool
	}{
		{"counter", []history.Op{op(history.Incr, "1", "1", 0, 1, ok), op(history.Incr, "1", "2", 2, 3, ok), op(history.Get, "", "2", 4, 5, ok)}, false},
		{"counter, applied twice", []history.Op{op(history.Incr, "1", "1", 0, 1, ok), op(history.Incr, "1", "3", 2, 3, ok)}, true},
		{"counter, lost", []history.Op{op(history.Incr, "1", "1", 0, 1, ok), op(history.Get, "", "0", 2, 3, ok)}, true},
		{"counter, an unknown that ran", []history.Op{op(history.Incr, "1", "", 0, 1, unknown), op(history.Incr, "1", "2", 2, 3, ok)}, false},
		{"counter, an unknown that ran late", []history.Op{op(history.Incr, "1", "", 0, 1, unknown), op(history.Incr, "1", "1", 2, 3, ok), op(history.Get, "", "2", 4, 5, ok)}, false},
		{"counter, one unknown ran twice", []history.Op{op(history.Incr, "1", "", 0, 1, unknown), op(history.Get, "", "2", 4, 5, ok)}, true},
		{"counter, a failed one ran", []history.Op{op(history.Incr, "1", "", 0, 1, fail), op(history.Get, "", "1", 4, 5, ok)}, true},
		{"register", []history.Op{op(history.Put, "a", "", 0, 1, ok), op(history.Put, "b", "", 2, 3, ok), op(history.Get, "", "b", 4, 5, ok)}, false},
		{"register, stale read", []history.Op{op(history.Put, "a", "", 0, 1, ok), op(history.Put, "b", "", 2, 3, ok), op(history.Get, "", "a", 4, 5, ok)}, true},
		{"register, concurrent", []history.Op{op(history.Put, "a", "", 0, 9, ok), op(history.Put, "b", "", 0, 9, ok), op(history.Get, "", "a", 4, 5, ok), op(history.Get, "", "b", 6, 7, ok)}, false},
		{"register, flickering", []history.Op{op(history.Put, "a", "", 0, 9, ok), op(history.Put, "b", "", 0, 9, ok), op(history.Get, "", "a", 3, 4, ok), op(history.Get, "", "b", 5, 6, ok), op(history.Get, "", "a", 7, 8, ok)}, true},
		{"register, an unknown put seen and unseen again", []history.Op{op(history.Put, "a", "", 0, 1, ok), op(history.Put, "b", "", 2, 3, unknown), op(history.Get, "", "b", 4, 5, ok), op(history.Get, "", "a", 6, 7, ok)}, true},
		{"register, dirty read", []history.Op{op(history.Get, "", "a", 0, 1, ok), op(history.Put, "a", "", 2, 3, unknown)}, true},
		{"cas", []history.Op{cas("", "a", "true", 0, 1, ok), cas("", "b", "false", 2, 3, ok), cas("a", "ab", "true", 4, 5, ok)}, false},
		{"cas, both won", []history.Op{cas("", "a", "true", 0, 1, ok), cas("", "b", "true", 2, 3, ok)}, true},
		{"cas, failed by an unknown", []history.Op{cas("", "a", "", 0, 1, unknown), cas("", "b", "false", 2, 3, ok)}, false},
		{"cas, failed by nobody", []history.Op{cas("", "b", "false", 2, 3, ok)}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Linear(tc.ops, limit); (len(got) > 0) != tc.bad {
				t.Fatalf("violations %v, bad is %v", got, tc.bad)
			}
		})
	}
}

// TestUnknownVerdictIsViolation: a search that runs out of time must not pass.
func TestUnknownVerdictIsViolation(t *testing.T) {
	var ops []history.Op
	for i := range 24 {
		// Unknown increments of distinct size: no reduction applies, and no sum
		// of them gives the read below.
		ops = append(ops, op(history.Incr, fmt.Sprint(2<<i), "", 0, 1, history.Unknown))
	}
	ops = append(ops, op(history.Get, "", "7", 2, 3, history.OK))
	got := Linear(ops, time.Millisecond)
	if len(got) != 1 || !strings.Contains(got[0].Detail, "undecided") {
		t.Fatalf("got %v", got)
	}
}

// TestReduceKeepsVerdict compares the reduced search with the plain one on
// random small histories, good and bad.
func TestReduceKeepsVerdict(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	verdicts := map[bool]int{}
	for i := range 15000 {
		ops := randomHistory(rng)
		plain := append([]history.Op(nil), ops...)
		for i := range plain {
			if plain[i].Outcome == history.Unknown {
				plain[i].Return = -1
			}
		}
		want := porcupine.CheckOperations(registerModel, operations(plain))
		got := porcupine.CheckOperations(registerModel, operations(reduce(ops)))
		if got != want {
			t.Fatalf("history %d: reduced says %v, plain %v: %+v", i, got, want, ops)
		}
		verdicts[want]++
	}
	if verdicts[true] < 1000 || verdicts[false] < 1000 {
		t.Fatalf("the histories are too much alike: %v", verdicts)
	}
}

// TestReduceKeepsVerdictOfCounters likewise.
func TestReduceKeepsVerdictOfCounters(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	verdicts := map[bool]int{}
	for range 10000 {
		var ops []history.Op
		sum := int64(0)
		for i := range 3 + rng.IntN(8) {
			at := int64(i * 10)
			o := op(history.Get, "", "", at-rng.Int64N(25), at+rng.Int64N(25), history.OK)
			if rng.IntN(3) == 0 {
				o.Kind, o.Arg = history.Incr, "1"
				if rng.IntN(3) == 0 {
					o.Outcome = history.Unknown
				}
				if o.Outcome == history.OK || rng.IntN(2) == 0 {
					sum++
				}
			}
			if o.Ret = fmt.Sprint(sum); rng.IntN(20) == 0 {
				o.Ret = fmt.Sprint(max(0, sum-1))
			}
			ops = append(ops, o)
		}
		plain := append([]history.Op(nil), ops...)
		for i := range plain {
			if plain[i].Outcome == history.Unknown {
				plain[i].Return = -1
			}
		}
		want := porcupine.CheckOperations(counterModel, operations(plain))
		if got := porcupine.CheckOperations(counterModel, operations(reduce(ops))); got != want {
			t.Fatalf("reduced says %v, plain %v: %+v", got, want, ops)
		}
		verdicts[want]++
	}
	if verdicts[true] < 1000 || verdicts[false] < 1000 {
		t.Fatalf("the histories are too much alike: %v", verdicts)
	}
}

// randomHistory simulates a register with a few concurrent clients, then lies
// about a result now and then.
func randomHistory(rng *rand.Rand) []history.Op {
	var ops []history.Op
	value := ""
	values := []string{""}
	withCAS := rng.IntN(2) == 0
	for i := range 3 + rng.IntN(8) {
		at := int64(i * 10)
		o := op(history.Get, "", "", at-rng.Int64N(25), at+rng.Int64N(25), history.OK)
		ran := true
		if rng.IntN(3) == 0 {
			o.Outcome = history.Unknown
			ran = rng.IntN(2) == 0
		}
		switch k := rng.IntN(3); {
		case k == 0:
			o.Ret = value
			if rng.IntN(3) == 0 {
				o.Ret = values[rng.IntN(len(values))]
			}
		case k == 1 || !withCAS:
			o.Kind, o.Arg = history.Put, fmt.Sprint("v", i)
			values = append(values, o.Arg)
			if ran {
				value = o.Arg
			}
		default:
			o.Kind, o.Arg, o.Old = history.CAS, fmt.Sprint("v", i), values[rng.IntN(len(values))]
			hit := o.Old == value
			o.Ret = fmt.Sprint(hit != (rng.IntN(8) == 0))
			values = append(values, o.Arg)
			if ran && hit {
				value = o.Arg
			}
		}
		ops = append(ops, o)
	}
	return ops
}

func TestInfinityIsAfterEverything(t *testing.T) {
	ops := operations([]history.Op{op(history.Put, "a", "", 5, -1, history.Unknown)})
	if ops[0].Return != math.MaxInt64 {
		t.Fatalf("returns at %d", ops[0].Return)
	}
}

func TestCounter(t *testing.T) {
	incr := func(ret string, o history.Outcome) history.Op { return op(history.Incr, "1", ret, 0, 1, o) }
	two := []history.Op{incr("1", history.OK), incr("2", history.OK), incr("", history.Unknown), incr("", history.Fail)}
	for final, want := range map[int64]string{1: "lost", 2: "", 3: "", 4: "duplicated"} {
		c, v := Counter("s", two, final)
		if want == "" && len(v) > 0 || want != "" && (len(v) == 0 || v[len(v)-1].Check != want && v[0].Check != want) {
			t.Errorf("final %d: %v", final, v)
		}
		if c.Acked != 2 || c.Unknown != 1 || c.Failed != 1 {
			t.Errorf("counts %+v", c)
		}
	}
	same := []history.Op{incr("1", history.OK), incr("1", history.OK)}
	if _, v := Counter("s", same, 2); len(v) != 1 || v[0].Check != "duplicated" {
		t.Errorf("two increments with one answer: %v", v)
	}
}

func TestAppends(t *testing.T) {
	app := func(e string, call, back int64, o history.Outcome) history.Op {
		return op(history.CAS, e, "true", call, back, o)
	}
	ops := []history.Op{app("a", 0, 1, history.OK), app("b", 2, 3, history.OK), app("c", 4, 5, history.Unknown)}
	element := func(o *history.Op) string { return o.Arg }
	for list, want := range map[string]string{
		"a,b": "", "a,b,c": "", "a": "lost", "a,b,b": "duplicated", "b,a": "order", "a,b,z": "invented",
	} {
		_, v := Appends("s", ops, strings.Split(list, ","), element)
		if want == "" && len(v) > 0 || want != "" && (len(v) == 0 || v[0].Check != want) {
			t.Errorf("%s: %v, want %q", list, v, want)
		}
	}
}

func TestPushes(t *testing.T) {
	ops := []history.Op{op(history.Push, "a", "", 0, 1, history.OK), op(history.Push, "b", "", 2, 3, history.OK), op(history.Push, "c", "", 2, 3, history.Unknown)}
	got := func(s string) (out []history.Received) {
		for i, p := range strings.Split(s, ",") {
			out = append(out, history.Received{Session: "s", Seq: uint64(i + 1), Payload: p})
		}
		return out
	}
	skip := got("a,b")
	skip[1].Seq = 3
	back := got("a,b")
	back[1].Seq = 1
	for _, tc := range []struct {
		in   []history.Received
		want string
	}{
		{got("a,b"), ""}, {got("a,b,c"), ""}, {got("a"), "lost"}, {got("a,b,b"), "duplicated"},
		{got("a,b,z"), "invented"}, {skip, "gap"}, {back, "duplicated"},
	} {
		_, v := Pushes("s", ops, tc.in)
		if tc.want == "" && len(v) > 0 || tc.want != "" && (len(v) == 0 || v[0].Check != tc.want) {
			t.Errorf("%v: %v, want %q", tc.in, v, tc.want)
		}
	}
}

func TestOwners(t *testing.T) {
	reply := func(epoch uint64, node string, call, back int64) history.Op {
		o := op(history.Incr, "1", "1", call, back, history.OK)
		o.Epoch, o.Node = epoch, node
		return o
	}
	good := []Serving{
		{"s", 5, "id1", 2, 100, 200}, {"s", 5, "id1", 2, 100, 250}, {"s", 8, "n2", 3, 300, 400},
	}
	names := map[string]string{"id1": "n1"}
	ops := []history.Op{reply(5, "n1", 0, 1), reply(5, "n1", 1, 9), reply(8, "n2", 2, 3)}
	for _, tc := range []struct {
		name     string
		ops      []history.Op
		servings []Serving
		want     string
	}{
		{"good", ops, good, ""},
		{"two nodes by replies", append(ops, reply(8, "n3", 2, 3)), good, "two owners"},
		{"two nodes by records", ops, append(good, Serving{"s", 8, "n3", 4, 410, 420}), "two owners"},
		{"reply against record", []history.Op{reply(5, "n3", 0, 1)}, good, "two owners"},
		{"two incarnations", ops, append(good, Serving{"s", 8, "n2", 9, 410, 420}), "two owners"},
		{"overlap", nil, []Serving{{"s", 5, "n1", 2, 100, 300}, {"s", 8, "n2", 3, 300, 400}}, "overlap"},
		{"overlap with one before last", nil, []Serving{{"s", 5, "n1", 2, 100, 900}, {"s", 8, "n2", 3, 901, 902}, {"s", 9, "n3", 4, 850, 860}}, "overlap"},
		{"epochs not in log order", nil, []Serving{{"s", 8, "n1", 2, 100, 200}, {"s", 5, "n2", 3, 300, 400}}, "overlap"},
		{"old owner answers later", []history.Op{reply(8, "n2", 0, 1), reply(5, "n1", 2, 3)}, nil, "stale owner"},
		{"another session", nil, []Serving{{"s", 5, "n1", 2, 100, 300}, {"t", 8, "n2", 3, 300, 400}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := Owners(tc.ops, append([]Serving(nil), tc.servings...), names)
			if tc.want == "" && len(v) > 0 || tc.want != "" && (len(v) == 0 || v[0].Check != tc.want) {
				t.Fatalf("%v, want %q", v, tc.want)
			}
		})
	}
}

func TestEpochs(t *testing.T) {
	reply := op(history.Get, "", "", 0, 1, history.OK)
	reply.Epoch, reply.Node = 8, "n2"
	good := []Change{{5, "n1", 10, false}, {8, "n2", 20, false}}
	if v := Epochs("s", good, []history.Op{reply}); len(v) > 0 {
		t.Error(v)
	}
	for _, bad := range [][]Change{
		{{5, "n1", 10, false}, {8, "n3", 20, false}},                       // another owner than the reply says
		{{5, "n1", 10, false}, {9, "n2", 20, false}},                       // the reply's epoch is missing
		{{8, "n2", 10, false}, {8, "n2", 20, false}},                       // not rising
		{{5, "n1", 10, false}, {8, "n2", 9, false}},                        // log order
		{{5, "n1", 10, false}, {8, "n2", 20, false}, {7, "n1", 30, false}}, // falling
	} {
		if v := Epochs("s", bad, []history.Op{reply}); len(v) == 0 {
			t.Errorf("%v passes", bad)
		}
	}
}

func TestLeases(t *testing.T) {
	changes := []Change{{5, "n1", 10, false}, {8, "n2", 20, true}, {9, "n3", 30, false}}
	answer := func(epoch uint64, call, back int64, taken int64) history.Op {
		o := op(history.Get, "", "", call, back, history.OK)
		o.Epoch, o.Leased, o.Taken = epoch, taken > 0, taken
		return o
	}
	first := answer(8, 50, 60, 0) // the fenced-in epoch's first answer, seen at 60
	for name, tc := range map[string]struct {
		ops []history.Op
		bad bool
	}{
		"before it":                  {[]history.Op{first, answer(5, 10, 99, 60)}, false},
		"after it":                   {[]history.Op{first, answer(5, 10, 99, 61)}, true},
		"confirmed":                  {[]history.Op{first, answer(5, 10, 99, 0)}, false},
		"of the same epoch":          {[]history.Op{first, answer(8, 10, 99, 61)}, false},
		"after one that took over":   {[]history.Op{first, answer(9, 61, 65, 0), answer(8, 10, 99, 70)}, false},
		"nothing was answered in it": {[]history.Op{answer(5, 10, 99, 70)}, false},
	} {
		if v := Leases("s", changes, tc.ops); len(v) > 0 != tc.bad {
			t.Errorf("%s: %v", name, v)
		}
	}
}
