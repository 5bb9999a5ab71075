package check

import (
	"fmt"
	"sort"
	"strconv"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

// Counts are the totals over all ledgers.
type Counts struct {
	Acked      int `json:"acked"` // writes acknowledged
	Unknown    int `json:"unknown"`
	Failed     int `json:"failed"`
	Reads      int `json:"reads"`
	Lost       int `json:"lost"`       // acknowledged and not there at the end
	Duplicated int `json:"duplicated"` // there more often than asked for
}

// Add sums up.
func (c *Counts) Add(o Counts) {
	c.Acked += o.Acked
	c.Unknown += o.Unknown
	c.Failed += o.Failed
	c.Reads += o.Reads
	c.Lost += o.Lost
	c.Duplicated += o.Duplicated
}

// Tally counts outcomes.
func Tally(ops []history.Op) Counts {
	var c Counts
	for i := range ops {
		switch op := &ops[i]; {
		case op.Outcome == history.Fail:
			c.Failed++
		case op.ReadOnly():
			if op.Outcome == history.OK {
				c.Reads++
			}
		case op.Outcome == history.OK:
			c.Acked++
		default:
			c.Unknown++
		}
	}
	return c
}

// Counter checks one counter of unit increments against its final value: every
// acknowledged increment is in it, once; unknown ones may be. It also checks
// that no two increments got the same answer, which a final value alone might
// hide behind a lost one.
func Counter(session string, ops []history.Op, final int64) (Counts, []Violation) {
	c := Tally(ops)
	var out []Violation
	low, high := int64(c.Acked), int64(c.Acked+c.Unknown)
	if final < low {
		c.Lost = int(low - final)
		out = append(out, Violation{Check: "lost", Session: session, Detail: fmt.Sprintf("%d increments were acknowledged, the counter ends at %d", c.Acked, final)})
	}
	if final > high {
		c.Duplicated = int(final - high)
		out = append(out, Violation{Check: "duplicated", Session: session, Detail: fmt.Sprintf("at most %d increments ran once each, the counter ends at %d", high, final)})
	}
	answers := map[string]int{}
	for i := range ops {
		if op := &ops[i]; op.Kind == history.Incr && op.Outcome == history.OK {
			answers[op.Ret]++
		}
	}
	for ret, n := range answers {
		if n > 1 {
			out = append(out, Violation{Check: "duplicated", Session: session, Detail: fmt.Sprintf("%d increments were all answered %s", n, ret)})
		}
		if v, err := strconv.ParseInt(ret, 10, 64); err != nil || v < 1 || v > final {
			out = append(out, Violation{Check: "lost", Session: session, Detail: fmt.Sprintf("an increment was answered %q, the counter ends at %d", ret, final)})
		}
	}
	return c, ordered(out)
}

// Appends checks a list built by compare-and-set of one element more: every
// acknowledged element is in the final list once, none twice, none from
// nowhere, and an element whose append returned before another's was called
// stands before it.
func Appends(session string, ops []history.Op, final []string, element func(*history.Op) string) (Counts, []Violation) {
	c := Tally(ops)
	var out []Violation
	place := map[string]int{}
	for i, e := range final {
		if _, twice := place[e]; twice {
			c.Duplicated++
			out = append(out, Violation{Check: "duplicated", Session: session, Detail: fmt.Sprintf("element %s is in the list twice", e)})
		}
		place[e] = i
	}
	known := map[string]bool{}
	var acked []*history.Op
	for i := range ops {
		op := &ops[i]
		if op.Kind != history.CAS {
			continue
		}
		known[element(op)] = true
		if op.Outcome != history.OK || op.Ret != "true" {
			continue
		}
		if _, there := place[element(op)]; !there {
			c.Lost++
			out = append(out, Violation{Check: "lost", Session: session, Detail: fmt.Sprintf("element %s was acknowledged and is not in the list", element(op))})
			continue
		}
		acked = append(acked, op)
	}
	for _, e := range final {
		if !known[e] {
			out = append(out, Violation{Check: "invented", Session: session, Detail: fmt.Sprintf("element %s was never appended", e)})
		}
	}
	sort.Slice(acked, func(i, j int) bool { return acked[i].Return < acked[j].Return })
	for i, a := range acked {
		for _, b := range acked[i+1:] {
			if a.Return < b.Call && place[element(a)] > place[element(b)] {
				out = append(out, Violation{Check: "order", Session: session, Detail: fmt.Sprintf("%s was acknowledged before %s was asked for, but stands after it", element(a), element(b))})
			}
		}
	}
	return c, ordered(out)
}

// Pushes checks one client's pushes of one session: each receiver sees rising
// seqs (in order, none twice) without a gap, and every acknowledged push arrives
// once. Payloads must be unique.
func Pushes(session string, ops []history.Op, received []history.Received) (Counts, []Violation) {
	c := Tally(ops)
	var out []Violation
	last := map[int]uint64{}
	times := map[string]int{}
	for _, p := range received {
		if was, ok := last[p.Client]; ok && p.Seq != was+1 {
			kind := "gap"
			if p.Seq <= was {
				kind = "duplicated"
				c.Duplicated++
			}
			out = append(out, Violation{Check: kind, Session: session, Detail: fmt.Sprintf("client %d got push %d after push %d", p.Client, p.Seq, was)})
		}
		last[p.Client] = p.Seq
		times[p.Payload]++
	}
	known := map[string]bool{}
	for i := range ops {
		op := &ops[i]
		if op.Kind != history.Push {
			continue
		}
		known[op.Arg] = true
		n := times[op.Arg]
		if n > 1 {
			c.Duplicated += n - 1
			out = append(out, Violation{Check: "duplicated", Session: session, Detail: fmt.Sprintf("push %s arrived %d times", op.Arg, n)})
		}
		if n == 0 && op.Outcome == history.OK {
			c.Lost++
			out = append(out, Violation{Check: "lost", Session: session, Detail: fmt.Sprintf("push %s was acknowledged and never arrived", op.Arg)})
		}
	}
	for payload := range times {
		if !known[payload] {
			out = append(out, Violation{Check: "invented", Session: session, Detail: fmt.Sprintf("push %s was never made", payload)})
		}
	}
	return c, ordered(out)
}

// ordered makes a report the same each time.
func ordered(v []Violation) []Violation {
	sort.SliceStable(v, func(i, j int) bool {
		if v[i].Check != v[j].Check {
			return v[i].Check < v[j].Check
		}
		return v[i].Detail < v[j].Detail
	})
	return v
}
