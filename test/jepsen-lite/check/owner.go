package check

import (
	"fmt"
	"sort"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

// Serving is what one node says of one (session, epoch) that it served: the log
// positions of the first and the last command that it saw committed for it.
type Serving struct {
	Session     string
	Epoch       uint64
	Node        string
	Incarnation uint64
	First, Last uint64
}

// Change of a session's owner, as the log tells it.
type Change struct {
	Epoch uint64
	Owner string
	Index uint64
	// Fenced: the epoch began because the owner before was fenced.
	Fenced bool
}

// Owners checks P1 from three sides that know nothing of each other: what
// replies said (epoch, node), what nodes recorded, and real time. names maps a
// node's id to its name, where the sides differ.
//
//   - one (session, epoch) is served by one node, and by one incarnation of it;
//   - in log order the intervals of a session's epochs follow each other;
//   - in real time, an operation that began after another's answer is never
//     answered under a lower epoch.
func Owners(ops []history.Op, servings []Serving, names map[string]string) []Violation {
	name := func(id string) string {
		if n := names[id]; n != "" {
			return n
		}
		return id
	}
	bySession := map[string][]Serving{}
	for _, s := range servings {
		s.Node = name(s.Node)
		bySession[s.Session] = append(bySession[s.Session], s)
	}
	answered := history.BySession(ops)
	sessions := map[string]bool{}
	for s := range bySession {
		sessions[s] = true
	}
	for s := range answered {
		sessions[s] = true
	}
	var out []Violation
	for s := range sessions {
		ops := okOps(answered[s])
		out = append(out, oneOwner(s, ops, bySession[s], name)...)
		out = append(out, apart(s, bySession[s])...)
		out = append(out, rising(s, ops)...)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Session < out[j].Session })
	return out
}

func okOps(ops []history.Op) []history.Op {
	var out []history.Op
	for _, op := range ops {
		if op.Outcome == history.OK && op.Epoch > 0 {
			out = append(out, op)
		}
	}
	return out
}

func oneOwner(session string, ops []history.Op, servings []Serving, name func(string) string) []Violation {
	nodes := map[uint64]map[string]bool{}
	note := func(epoch uint64, node string) {
		if nodes[epoch] == nil {
			nodes[epoch] = map[string]bool{}
		}
		nodes[epoch][node] = true
	}
	incarnations := map[uint64]map[uint64]bool{}
	for _, s := range servings {
		note(s.Epoch, s.Node)
		if incarnations[s.Epoch] == nil {
			incarnations[s.Epoch] = map[uint64]bool{}
		}
		incarnations[s.Epoch][s.Incarnation] = true
	}
	for i := range ops {
		if ops[i].Node != "" {
			note(ops[i].Epoch, name(ops[i].Node))
		}
	}
	var out []Violation
	for epoch, set := range nodes {
		if len(set) > 1 {
			out = append(out, Violation{Check: "two owners", Session: session, Detail: fmt.Sprintf("epoch %d was served by %v", epoch, keys(set))})
		}
	}
	for epoch, set := range incarnations {
		if len(set) > 1 {
			out = append(out, Violation{Check: "two owners", Session: session, Detail: fmt.Sprintf("epoch %d was served by %d incarnations", epoch, len(set))})
		}
	}
	return ordered(out)
}

// apart: several records of one epoch are joined first, as a node is asked more
// than once.
func apart(session string, servings []Serving) []Violation {
	joined := map[uint64]*Serving{}
	for _, s := range servings {
		j := joined[s.Epoch]
		if j == nil {
			c := s
			joined[s.Epoch] = &c
			continue
		}
		j.First = min(j.First, s.First)
		j.Last = max(j.Last, s.Last)
	}
	list := make([]*Serving, 0, len(joined))
	for _, s := range joined {
		list = append(list, s)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Epoch < list[j].Epoch })
	var out []Violation
	for i := 1; i < len(list); i++ {
		a, b := list[i-1], list[i]
		// Each interval against the next alone would miss a long one.
		if a.Last >= b.First {
			out = append(out, Violation{Check: "overlap", Session: session, Detail: fmt.Sprintf(
				"epoch %d (%s) served at positions %d to %d, epoch %d (%s) at %d to %d",
				a.Epoch, a.Node, a.First, a.Last, b.Epoch, b.Node, b.First, b.Last)})
		}
		if a.Last > b.Last {
			b.Last = a.Last
		}
	}
	return out
}

func rising(session string, ops []history.Op) []Violation {
	byCall := append([]history.Op(nil), ops...)
	sort.SliceStable(byCall, func(i, j int) bool { return byCall[i].Call < byCall[j].Call })
	byReturn := append([]history.Op(nil), ops...)
	sort.SliceStable(byReturn, func(i, j int) bool { return byReturn[i].Return < byReturn[j].Return })
	var out []Violation
	var high *history.Op
	next := 0
	for i := range byCall {
		op := &byCall[i]
		for next < len(byReturn) && byReturn[next].Return < op.Call {
			if high == nil || byReturn[next].Epoch > high.Epoch {
				high = &byReturn[next]
			}
			next++
		}
		if high != nil && op.Epoch < high.Epoch {
			out = append(out, Violation{Check: "stale owner", Session: session, Detail: fmt.Sprintf(
				"%s(%s) began after an answer of %s under epoch %d, and was answered by %s under epoch %d",
				op.Kind, op.Arg, high.Node, high.Epoch, op.Node, op.Epoch)})
		}
	}
	return out
}

// Epochs checks a session's ownership history as the cluster tells it: epochs
// and log indexes rise strictly, and each of the replies' epochs that is not
// older than the history is in it, with that owner.
func Epochs(session string, changes []Change, ops []history.Op) []Violation {
	var out []Violation
	owner := map[uint64]string{}
	for i, c := range changes {
		owner[c.Epoch] = c.Owner
		if i > 0 && (c.Epoch <= changes[i-1].Epoch || c.Index < changes[i-1].Index) {
			out = append(out, Violation{Check: "epochs", Session: session, Detail: fmt.Sprintf("epoch %d at index %d follows epoch %d at index %d",
				c.Epoch, c.Index, changes[i-1].Epoch, changes[i-1].Index)})
		}
	}
	if len(changes) == 0 {
		return out
	}
	told := map[uint64]bool{}
	for _, op := range okOps(ops) {
		if op.Epoch < changes[0].Epoch || op.Node == "" || told[op.Epoch] {
			continue
		}
		if o, ok := owner[op.Epoch]; !ok || o != op.Node {
			told[op.Epoch] = true
			out = append(out, Violation{Check: "epochs", Session: session, Detail: fmt.Sprintf("a reply of %s under epoch %d, for which the history names %q", op.Node, op.Epoch, o)})
		}
	}
	return out
}

func keys(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
