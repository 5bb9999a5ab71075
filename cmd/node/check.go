package main

import (
	"fmt"
	"sort"

	"github.com/baton-cluster/baton"
)

// History is all that a checker needs: what clients saw, and what the nodes
// have on record. check is pure: it knows nothing of how either came about.
type History struct {
	Keys       []SessionKey
	Ops        []Op
	Deliveries []Delivery
	Moves      []MoveSeen

	// Finals are reads made after the load, through nodes other than the owner.
	Finals []Final
	// Rows are the sessions as the cluster shows them after the load, before the
	// final reads.
	Rows map[string]baton.SessionInfo
	// Owners is each session's ownership history.
	Owners map[string][]baton.OwnerChange
	// Servings are the nodes' own records of having served.
	Servings []baton.Serving
	// Migrations are those that the cluster remembers.
	Migrations []baton.MigrationInfo
	// Names of nodes by id.
	Names map[string]string
	// Interrupted: the load may have been cut short, which cancelled what was under way.
	Interrupted bool
}

// Final is a session's counter and register, read through a node.
type Final struct {
	Session string
	Through string
	Counter int64
	Version int64
	Err     string // set if the read failed
	cause   error
}

// Findings are a checker's counts. All are zero where every promise was kept.
type Findings struct {
	// Lost acknowledged effects: not in the final state, or overwritten by an
	// owner that did not know of them.
	Lost int
	// Duplicated effects: applied more often than they were asked for, and pushes
	// delivered twice.
	Duplicated int
	// DoubleOwned counts epochs with two owners, and serving intervals of
	// different epochs that overlap.
	DoubleOwned int
	// StaleReads returned less than was acknowledged, or read, before they began.
	StaleReads int
	// Refused calls ended in an error, though every call may take as long as it
	// needs.
	Refused int
	// Contradictions between what clients saw and what nodes recorded that are
	// none of the above.
	Contradictions int
	// Violations describes the first findings for people.
	Violations []string
}

// violationsMax bounds the descriptions; the counts are complete.
const violationsMax = 20

func (f *Findings) clean() bool {
	return f.Lost == 0 && f.Duplicated == 0 && f.DoubleOwned == 0 && f.StaleReads == 0 && f.Refused == 0 && f.Contradictions == 0
}

// found adds n to a count and describes it.
func (f *Findings) found(count *int, n int, format string, args ...any) {
	if n <= 0 {
		return
	}
	*count += n
	if len(f.Violations) < violationsMax {
		f.Violations = append(f.Violations, fmt.Sprintf(format, args...))
	}
}

// check compares a history with itself.
func check(h *History) Findings {
	var f Findings
	ops := map[string][]Op{}
	for _, o := range h.Ops {
		ops[o.Session] = append(ops[o.Session], o)
	}
	finals := map[string][]Final{}
	for _, r := range h.Finals {
		finals[r.Session] = append(finals[r.Session], r)
	}
	deliveries := map[string][]Delivery{}
	for _, d := range h.Deliveries {
		deliveries[d.Session] = append(deliveries[d.Session], d)
	}
	for _, id := range h.sessions() {
		f.refusals(id, ops[id], h.Interrupted)
		f.counter(id, ops[id], finals[id])
		f.register(id, ops[id], finals[id])
		f.reads(id, ops[id])
		f.pushes(id, ops[id], deliveries[id])
		f.epochs(id, ops[id])
		f.row(id, h, ops[id])
	}
	f.owners(h)
	f.intervals(h)
	f.migrations(h)
	return f
}

// sessions lists every session that the history names, in order.
func (h *History) sessions() []string {
	set := map[string]bool{}
	for _, k := range h.Keys {
		set[k.Session] = true
	}
	for _, o := range h.Ops {
		set[o.Session] = true
	}
	out := make([]string, 0, len(set))
	for id := range set {
		out = append(out, id)
	}
	sort.Strings(out)
	return out
}

// refusals: a session that is gone though nobody closed it is lost; any other
// error breaks the promise that calls succeed in the end.
func (f *Findings) refusals(id string, ops []Op, interrupted bool) {
	gone := ""
	refused, code := 0, ""
	for _, o := range ops {
		switch {
		case o.Acked, interrupted && o.Code == "cancelled":
		case o.Code == "unknown_session" || o.Code == "session_closed" || o.Code == "session_expired":
			gone = o.Code
		default:
			refused++
			code = o.Code
		}
	}
	if gone != "" {
		f.found(&f.Lost, 1, "session %s: lost (%s)", id, gone)
	}
	f.found(&f.Refused, refused, "session %s: %d calls failed, the last with %s", id, refused, code)
}

// counter checks increments by one. Every acknowledged one returned the value
// that it made, so the values are distinct, rise in real time, leave no gap
// that unacknowledged ones do not explain, and the final value is their number.
func (f *Findings) counter(id string, ops []Op, finals []Final) {
	var acked []Op
	unacked := int64(0)
	for _, o := range ops {
		if o.Kind != kindIncr {
			continue
		}
		if o.Acked {
			acked = append(acked, o)
		} else {
			unacked++
		}
	}
	n := int64(len(acked))
	values := map[int64]bool{}
	top, overwritten := int64(0), 0
	for _, o := range acked {
		if values[o.Value] {
			overwritten++
		}
		values[o.Value] = true
		top = max(top, o.Value)
	}
	overwritten = max(overwritten, regressions(acked))
	missing := top - int64(len(values)) - unacked
	lost, doubled := int64(overwritten), max(0, missing)
	for _, r := range finals {
		if r.Err != "" {
			continue
		}
		lost = max(lost, max(n, top)-r.Counter)
		doubled = max(doubled, r.Counter-n-unacked)
	}
	f.found(&f.Lost, int(lost), "session %s: %d acknowledged increments lost (%d acknowledged, highest value %d, final %s)", id, lost, n, top, finalCounters(finals))
	f.found(&f.Duplicated, int(doubled), "session %s: %d increments too many (%d acknowledged, %d unknown, highest value %d, final %s)", id, doubled, n, unacked, top, finalCounters(finals))
}

func finalCounters(finals []Final) string {
	if len(finals) == 0 {
		return "not read"
	}
	out := ""
	for _, r := range finals {
		out += fmt.Sprintf("%d through %s ", r.Counter, r.Through)
	}
	return out[:len(out)-1]
}

// regressions counts increments that returned no more than one which had been
// acknowledged before they began.
func regressions(incrs []Op) int {
	n := 0
	sweep(incrs, func(before int64, o Op) {
		if o.Value <= before {
			n++
		}
	}, func(o Op) int64 { return o.Value })
	return n
}

// sweep calls visit for each op, in order of start, with the greatest value
// (0: none) among the ops that had ended before it started.
func sweep(ops []Op, visit func(before int64, o Op), value func(Op) int64) {
	starts := append([]Op(nil), ops...)
	ends := append([]Op(nil), ops...)
	sort.SliceStable(starts, func(i, j int) bool { return starts[i].StartUS < starts[j].StartUS })
	sort.SliceStable(ends, func(i, j int) bool { return ends[i].EndUS < ends[j].EndUS })
	before, next := int64(0), 0
	for _, o := range starts {
		// Strictly before: within one microsecond the order is unknown.
		for next < len(ends) && ends[next].EndUS < o.StartUS {
			before = max(before, value(ends[next]))
			next++
		}
		visit(before, o)
	}
}

// register checks the final version against the acknowledged and the issued
// ones. It has one writer, whose versions rise.
func (f *Findings) register(id string, ops []Op, finals []Final) {
	var acked []int64
	issued := int64(0)
	for _, o := range ops {
		if o.Kind != kindPut {
			continue
		}
		issued = max(issued, o.Value)
		if o.Acked {
			acked = append(acked, o.Value)
		}
	}
	lost := 0
	for _, r := range finals {
		if r.Err != "" {
			f.found(&f.Lost, 1, "session %s: final read through %s failed: %s", id, r.Through, r.Err)
			continue
		}
		newer := 0
		for _, v := range acked {
			if v > r.Version {
				newer++
			}
		}
		lost = max(lost, newer)
		if r.Version > issued {
			f.found(&f.Contradictions, 1, "session %s: version %d was never written", id, r.Version)
		}
	}
	f.found(&f.Lost, lost, "session %s: %d acknowledged puts are newer than the final version", id, lost)
}

// reads checks that no read returned less than what was acknowledged, or read
// by anybody, before it began, nor more than was asked for before it ended.
func (f *Findings) reads(id string, ops []Op) {
	for _, pair := range [][2]string{{kindIncr, kindCount}, {kindPut, kindGet}} {
		var known []Op
		var begun []int64
		top := map[int64]int64{} // start → greatest version asked for (puts)
		for _, o := range ops {
			if o.Kind == pair[0] {
				begun = append(begun, o.StartUS)
				top[o.StartUS] = max(top[o.StartUS], o.Value)
			}
			if o.Acked && (o.Kind == pair[0] || o.Kind == pair[1]) {
				known = append(known, o)
			}
		}
		sort.Slice(begun, func(i, j int) bool { return begun[i] < begun[j] })
		stale, future := 0, 0
		var worst Op
		sweep(known, func(before int64, o Op) {
			if o.Kind != pair[1] {
				return
			}
			if o.Value < before {
				stale++
				worst = o
			}
			if o.Value > askedFor(pair[0], begun, top, o.EndUS) {
				future++
			}
		}, func(o Op) int64 { return o.Value })
		f.found(&f.StaleReads, stale, "session %s: %d stale reads, the last a %s of %d from %s under epoch %d", id, stale, worst.Kind, worst.Value, worst.Owner, worst.Epoch)
		f.found(&f.Contradictions, future, "session %s: %d reads returned what nobody had written", id, future)
	}
}

// askedFor bounds what a read that ended at end may have seen: for a counter
// the number of increments begun by then, for a register the greatest version.
// An increment that was applied twice is the counter's business; it is judged
// there.
func askedFor(kind string, begun []int64, top map[int64]int64, end int64) int64 {
	n := sort.Search(len(begun), func(i int) bool { return begun[i] > end })
	if kind == kindIncr {
		return int64(n)
	}
	if n == 0 {
		return 0
	}
	return top[begun[n-1]] // versions rise with time: one writer
}

// pushes: in order, none twice, every acknowledged one received.
func (f *Findings) pushes(id string, ops []Op, got []Delivery) {
	seen := map[int64]int{}
	last, twice := uint64(0), 0
	for _, d := range got {
		seen[d.Value]++
		if seen[d.Value] > 1 || d.Seq <= last {
			twice++
		}
		last = max(last, d.Seq)
	}
	f.found(&f.Duplicated, twice, "session %s: %d pushes received twice or out of order", id, twice)
	missing := 0
	for _, o := range ops {
		if o.Kind == kindPush && o.Acked && seen[o.Value] == 0 {
			missing++
		}
	}
	f.found(&f.Lost, missing, "session %s: %d acknowledged pushes never arrived", id, missing)
}

// epochs: once a reply of an epoch has arrived, nothing that begins later is
// served under an earlier one.
func (f *Findings) epochs(id string, ops []Op) {
	var acked []Op
	for _, o := range ops {
		if o.Acked && o.Epoch != 0 {
			acked = append(acked, o)
		}
	}
	late := 0
	var worst Op
	sweep(acked, func(before int64, o Op) {
		if o.Epoch < uint64(before) {
			late++
			worst = o
		}
	}, func(o Op) int64 { return int64(o.Epoch) })
	f.found(&f.DoubleOwned, late, "session %s: %d calls served under an epoch that was over, the last by %s under %d", id, late, worst.Owner, worst.Epoch)
}

// row compares the cluster's row with what the clients were told.
func (f *Findings) row(id string, h *History, ops []Op) {
	row, ok := h.Rows[id]
	if !ok {
		return
	}
	epoch, seq := uint64(0), uint64(0)
	for _, o := range ops {
		if !o.Acked {
			continue
		}
		epoch = max(epoch, o.Epoch)
		if o.write() {
			seq = max(seq, o.Seq)
		}
	}
	if row.Epoch < epoch {
		f.found(&f.Contradictions, 1, "session %s: a reply came under epoch %d, the row has %d", id, epoch, row.Epoch)
	}
	for _, k := range h.Keys {
		// The row tells of the client that attached last: the only one, unless the
		// session is shared.
		if k.Session == id && !k.Shared && row.NextSeq <= seq {
			f.found(&f.Lost, 1, "session %s: seq %d was acknowledged, the row expects %d", id, seq, row.NextSeq)
		}
	}
}
