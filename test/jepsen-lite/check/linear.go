// Package check judges histories. It shares no rule with the product: it has
// its own models of what a counter and a register are, and its own idea of
// ownership.
package check

import (
	"bytes"
	"fmt"
	"math"
	"sort"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

// Violation is one promise seen broken.
type Violation struct {
	Check   string `json:"check"`
	Session string `json:"session,omitempty"`
	Detail  string `json:"detail"`
	// Picture is Porcupine's page about it, where there is one.
	Picture []byte `json:"-"`
}

func (v Violation) String() string {
	if v.Session == "" {
		return v.Check + ": " + v.Detail
	}
	return v.Check + ": session " + v.Session + ": " + v.Detail
}

// counterModel: Incr returns the sum so far, Get the same. An Incr of unknown
// outcome has no Ret and accepts any.
var counterModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		sum, op := state.(int64), input.(*history.Op)
		if op.Kind == history.Get {
			return op.Ret == strconv.FormatInt(sum, 10) || op.Ret == "" && sum == 0, sum
		}
		delta, err := strconv.ParseInt(op.Arg, 10, 64)
		if err != nil {
			return false, state
		}
		sum += delta
		return op.Outcome == history.Unknown || op.Ret == strconv.FormatInt(sum, 10), sum
	},
	DescribeOperation: describe,
}

// registerModel: one value, empty at first; Put, Get and CAS. A CAS of unknown
// outcome writes if it matches.
var registerModel = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		value, op := state.(string), input.(*history.Op)
		switch op.Kind {
		case history.Get:
			return op.Ret == value, value
		case history.Put:
			return true, op.Arg
		case history.CAS:
			hit := value == op.Old
			if op.Outcome == history.OK && op.Ret != strconv.FormatBool(hit) {
				return false, value
			}
			if hit {
				return true, op.Arg
			}
			return true, value
		}
		return false, state
	},
	DescribeOperation: describe,
}

func describe(input, _ any) string {
	op := input.(*history.Op)
	return fmt.Sprintf("%s(%s%s) → %s %s", op.Kind, op.Old, op.Arg, op.Ret, op.Outcome)
}

// Linear checks each (session, key) of the operations on its own, for at most
// limit each. What the search cannot decide in time is a violation too.
func Linear(ops []history.Op, limit time.Duration) []Violation {
	var out []Violation
	for _, part := range partition(ops) {
		model := registerModel
		for i := range part {
			if part[i].Kind == history.Incr {
				model = counterModel
			}
		}
		part = reduce(part)
		all := operations(part)
		result := porcupine.CheckOperationsTimeout(model, all, limit)
		if result == porcupine.Ok {
			continue
		}
		v := Violation{Check: "linearizability", Session: part[0].Session}
		v.Detail = fmt.Sprintf("key %q: %d operations cannot be put in an order that explains their results", part[0].Key, len(part))
		if result == porcupine.Unknown {
			v.Detail = fmt.Sprintf("key %q: undecided after %v over %d operations; shorten the run or lower the faults", part[0].Key, limit, len(part))
		}
		v.Picture = picture(model, all, limit)
		out = append(out, v)
	}
	return out
}

// picture searches again and keeps how far it came, which costs memory.
func picture(model porcupine.Model, ops []porcupine.Operation, limit time.Duration) []byte {
	_, info := porcupine.CheckOperationsVerbose(model, ops, limit)
	var page bytes.Buffer
	if err := porcupine.Visualize(model, info, &page); err != nil {
		return nil // the violation is told without one
	}
	return page.Bytes()
}

// partition groups by session and key, in a fixed order. Pushes are another
// check's.
func partition(ops []history.Op) [][]history.Op {
	groups := map[[2]string][]history.Op{}
	for _, o := range ops {
		if o.Kind != history.Push {
			k := [2]string{o.Session, o.Key}
			groups[k] = append(groups[k], o)
		}
	}
	out := make([][]history.Op, 0, len(groups))
	for _, g := range groups {
		out = append(out, g)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := &out[i][0], &out[j][0]
		return a.Session < b.Session || a.Session == b.Session && a.Key < b.Key
	})
	return out
}

// operations turns a history into Porcupine's form: failed operations are
// dropped, reads without an answer too, and an operation of unknown outcome
// returns at infinity unless reduce has bounded it.
func operations(ops []history.Op) []porcupine.Operation {
	var out []porcupine.Operation
	for i := range ops {
		op := &ops[i]
		if dropped(op) {
			continue
		}
		ret := op.Return
		if op.Outcome == history.Unknown && op.Return < 0 {
			ret = math.MaxInt64
		}
		out = append(out, porcupine.Operation{ClientId: op.Client, Input: op, Call: op.Call, Output: op, Return: ret})
	}
	return out
}

func dropped(op *history.Op) bool {
	return op.Outcome == history.Fail || op.Outcome == history.Unknown && op.ReadOnly()
}

// reduce makes the search tractable without changing its verdict. Each
// operation of unknown outcome stays concurrent with all that follow, and the
// search is exponential in their number. But where every written value is
// written by one operation alone,
//
//   - a Put that nobody saw can go: whatever follows it in a valid order is a
//     write, or nothing, so the order without it is valid too;
//
//   - a Put that was seen took effect before the first answer that shows it.
//
//   - of the reads that show a value, two say all: the one that ends first, since the
//     value was there before that, and the one that begins last, since it was there
//     after. A value that is written once is there for one time without a break, and
//     reads are in nobody's way.
//
// A CAS that saw a value bounds it likewise; and since a CAS that failed saw
// only what the value was not, a key with CASes of unknown outcome keeps them.
// Of the result, an unknown operation with Return < 0 has no bound.
func reduce(ops []history.Op) []history.Op {
	seen := map[string]int64{} // value → earliest return of an answer that shows it
	writers := map[string]int{}
	for i := range ops {
		op := &ops[i]
		if op.Kind == history.Put || op.Kind == history.CAS {
			writers[op.Arg]++
		}
		if v, ok := shows(op); ok {
			if at, had := seen[v]; !had || op.Return < at {
				seen[v] = op.Return
			}
		}
	}
	failedCAS := anyFailedCAS(ops)
	telling := tellingReads(ops, writers)
	out := make([]history.Op, 0, len(ops))
	for i, op := range ops {
		if op.Kind == history.Get && op.Outcome == history.OK && writers[op.Ret] <= 1 && !telling[i] {
			continue
		}
		if op.Outcome == history.Unknown {
			at, shown := seen[op.Arg]
			op.Return = -1
			unique := (op.Kind == history.Put || op.Kind == history.CAS) && writers[op.Arg] == 1
			switch {
			case unique && shown && at >= op.Call:
				op.Return = at
			case unique && !shown && !failedCAS:
				continue
			}
		}
		out = append(out, op)
	}
	return out
}

// tellingReads are the two of each value. (A counter's values are there once, too,
// as nothing takes from it.)
func tellingReads(ops []history.Op, writers map[string]int) map[int]bool {
	first, last := map[string]int{}, map[string]int{}
	for i := range ops {
		op := &ops[i]
		if op.Kind != history.Get || op.Outcome != history.OK {
			continue
		}
		if at, had := first[op.Ret]; !had || op.Return < ops[at].Return {
			first[op.Ret] = i
		}
		if at, had := last[op.Ret]; !had || op.Call > ops[at].Call {
			last[op.Ret] = i
		}
	}
	out := map[int]bool{}
	for _, ends := range []map[string]int{first, last} {
		for _, i := range ends {
			out[i] = true
		}
	}
	return out
}

// shows returns the value that an answered operation proves to have been there.
func shows(op *history.Op) (string, bool) {
	switch {
	case op.Outcome != history.OK:
	case op.Kind == history.Get:
		return op.Ret, true
	case op.Kind == history.CAS && op.Ret == "true":
		return op.Old, true
	}
	return "", false
}

// anyFailedCAS: one that answered "false" proves that some other value was
// there, perhaps one that nobody saw. (An unknown CAS also may have relied on
// one; then its own value, if seen, needs it.)
func anyFailedCAS(ops []history.Op) bool {
	for i := range ops {
		op := &ops[i]
		if op.Kind == history.CAS && (op.Outcome == history.Unknown || op.Ret == "false") {
			return true
		}
	}
	return false
}
