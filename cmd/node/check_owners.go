package main

import (
	"fmt"
	"sort"
	"strings"

	"github.com/baton-cluster/baton"
)

type sessionEpoch struct {
	session string
	epoch   uint64
}

// owners checks that each epoch of each session has one owner, over all that
// was seen: replies, the cluster's histories, and the nodes' own records.
func (f *Findings) owners(h *History) {
	who := map[sessionEpoch]map[string]bool{}
	incarnations := map[sessionEpoch]map[uint64]bool{}
	note := func(session string, epoch uint64, owner string, incarnation uint64) {
		if epoch == 0 || owner == "" {
			return
		}
		k := sessionEpoch{session, epoch}
		if who[k] == nil {
			who[k], incarnations[k] = map[string]bool{}, map[uint64]bool{}
		}
		who[k][h.name(owner)] = true
		if incarnation != 0 {
			incarnations[k][incarnation] = true
		}
	}
	for _, o := range h.Ops {
		if o.Acked {
			note(o.Session, o.Epoch, o.Owner, 0)
		}
	}
	for id, changes := range h.Owners {
		for _, c := range changes {
			note(id, c.Epoch, c.Owner, c.Incarnation)
		}
	}
	for _, s := range h.Servings {
		note(s.Session, s.Epoch, s.Worker, s.Incarnation)
	}
	for _, k := range sortedEpochs(who) {
		if len(who[k]) > 1 || len(incarnations[k]) > 1 {
			f.found(&f.DoubleOwned, 1, "session %s: epoch %d had the owners %s", k.session, k.epoch, ownerList(who[k], incarnations[k]))
		}
	}
	f.unrecorded(h)
}

// unrecorded finds replies under epochs that the cluster's history, where it
// still reaches back so far, does not have.
func (f *Findings) unrecorded(h *History) {
	recorded := map[sessionEpoch]bool{}
	oldest := map[string]uint64{}
	for id, changes := range h.Owners {
		for i, c := range changes {
			recorded[sessionEpoch{id, c.Epoch}] = true
			if i == 0 {
				oldest[id] = c.Epoch
			}
		}
	}
	missing := map[sessionEpoch]map[string]bool{}
	for _, o := range h.Ops {
		k := sessionEpoch{o.Session, o.Epoch}
		from, known := oldest[o.Session]
		if o.Acked && o.Epoch != 0 && known && o.Epoch >= from && !recorded[k] {
			if missing[k] == nil {
				missing[k] = map[string]bool{}
			}
			missing[k][h.name(o.Owner)] = true
		}
	}
	for _, k := range sortedEpochs(missing) {
		f.found(&f.DoubleOwned, 1, "session %s: %s served under epoch %d, which the cluster never gave", k.session, ownerList(missing[k], nil), k.epoch)
	}
}

func (h *History) name(owner string) string {
	if n, ok := h.Names[owner]; ok {
		return n
	}
	return owner
}

func ownerList(names map[string]bool, incarnations map[uint64]bool) string {
	var out []string
	for n := range names {
		out = append(out, n)
	}
	sort.Strings(out)
	var inc []string
	for i := range incarnations {
		inc = append(inc, fmt.Sprint(i))
	}
	sort.Strings(inc)
	if len(inc) > 1 {
		return strings.Join(out, ", ") + " (incarnations " + strings.Join(inc, ", ") + ")"
	}
	return strings.Join(out, ", ")
}

func sortedEpochs(m map[sessionEpoch]map[string]bool) []sessionEpoch {
	out := make([]sessionEpoch, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].session != out[j].session {
			return out[i].session < out[j].session
		}
		return out[i].epoch < out[j].epoch
	})
	return out
}

// span is the log positions between which a session was served under an epoch.
type span struct {
	epoch       uint64
	first, last uint64
	owner       string
}

// intervals checks that serving intervals of different epochs never overlap:
// ordered by epoch, each begins after all earlier ones have ended. They come
// from the positions in replies to writes, and from the nodes' records.
func (f *Findings) intervals(h *History) {
	spans := map[string]map[uint64]*span{}
	note := func(session string, epoch, first, last uint64, owner string) {
		if epoch == 0 || first == 0 {
			return
		}
		if spans[session] == nil {
			spans[session] = map[uint64]*span{}
		}
		s := spans[session][epoch]
		if s == nil {
			spans[session][epoch] = &span{epoch, first, last, owner}
			return
		}
		s.first, s.last = min(s.first, first), max(s.last, last)
	}
	for _, o := range h.Ops {
		if o.Acked && o.write() {
			note(o.Session, o.Epoch, o.Index, o.Index, h.name(o.Owner))
		}
	}
	for _, s := range h.Servings {
		note(s.Session, s.Epoch, s.First, s.Last, h.name(s.Worker))
	}
	for _, id := range sortedKeys(spans) {
		list := make([]*span, 0, len(spans[id]))
		for _, s := range spans[id] {
			list = append(list, s)
		}
		sort.Slice(list, func(i, j int) bool { return list[i].epoch < list[j].epoch })
		var latest *span
		for _, s := range list {
			if latest != nil && s.first <= latest.last {
				f.found(&f.DoubleOwned, 1, "session %s: %s served under epoch %d until %d, %s under epoch %d from %d", id, latest.owner, latest.epoch, latest.last, s.owner, s.epoch, s.first)
			}
			if latest == nil || s.last > latest.last {
				latest = s
			}
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// pivoted reports whether a migration has changed the owner.
func pivoted(m baton.MigrationInfo) bool {
	return strings.EqualFold(m.State, "completed") || strings.EqualFold(m.State, "verifying") || strings.EqualFold(m.State, "completing")
}

// migrations checks that every migration that the cluster calls done is in its
// session's ownership history, with the owner that it names.
func (f *Findings) migrations(h *History) {
	for _, m := range h.Migrations {
		changes, known := h.Owners[m.Session]
		if !known || len(changes) == 0 || !pivoted(m) || m.Epoch < changes[0].Epoch {
			continue
		}
		ok := false
		for _, c := range changes {
			ok = ok || c.Epoch == m.Epoch && c.Migration == m.Migration && h.name(c.Owner) == h.name(m.To)
		}
		if !ok {
			f.found(&f.Contradictions, 1, "session %s: migration %d to %s is done, but epoch %d is not its in the session's history", m.Session, m.Migration, m.To, m.Epoch)
		}
	}
}

// pivots counts the migrations of the history's sessions that are in an
// ownership history and, by the cluster's list, done.
func (h *History) pivots() int {
	done := map[uint64]bool{}
	for _, m := range h.Migrations {
		if _, ours := h.Owners[m.Session]; ours && pivoted(m) {
			done[m.Migration] = true
		}
	}
	return len(done)
}

// Outage is a node that was killed or paused.
type Outage struct {
	Node  string
	AtUS  int64             // ledger time
	Owned map[string]uint64 // its sessions and their epochs just before
}

// failovers counts sessions that a dead or paused node owned and that answered
// again under a later epoch, given not by a migration, by the cluster's
// history. For each it tells how long after the fault the first answer came, in
// microseconds.
func (h *History) failovers(outages []Outage) []int64 {
	var took []int64
	for _, out := range outages {
		first := map[string]Op{}
		for _, o := range h.Ops {
			epoch, owned := out.Owned[o.Session]
			if !owned || !o.Acked || o.Epoch <= epoch {
				continue
			}
			if was, ok := first[o.Session]; !ok || o.EndUS < was.EndUS {
				first[o.Session] = o
			}
		}
		for _, id := range sortedKeys(out.Owned) {
			o, ok := first[id]
			if !ok || !h.assigned(id, out.Owned[id], o.Epoch) {
				continue
			}
			took = append(took, max(0, o.EndUS-out.AtUS))
		}
	}
	return took
}

// assigned reports whether the session got, after epoch from and up to epoch
// to, an owner otherwise than by a migration.
func (h *History) assigned(session string, from, to uint64) bool {
	for _, c := range h.Owners[session] {
		if c.Epoch > from && c.Epoch <= to && c.Migration == 0 {
			return true
		}
	}
	return false
}

// pauses are those of planned moves, as clients measured them, in microseconds.
func (h *History) pauses() []int64 {
	var out []int64
	for _, m := range h.Moves {
		if m.Planned {
			out = append(out, m.PauseUS)
		}
	}
	return out
}

// quantiles of values, all zero if there are none.
func quantiles(values []int64) baton.Quantiles {
	if len(values) == 0 {
		return baton.Quantiles{}
	}
	v := append([]int64(nil), values...)
	sort.Slice(v, func(i, j int) bool { return v[i] < v[j] })
	at := func(q float64) int64 { return v[int(q*float64(len(v)-1)+0.5)] }
	return baton.Quantiles{P50: at(0.5), P99: at(0.99), Max: v[len(v)-1]}
}

// mergeServings adds what nodes reported later to what they had reported
// before: a node that restarts forgets its records.
func mergeServings(old, more []baton.Serving) []baton.Serving {
	type key struct {
		sessionEpoch
		worker      string
		incarnation uint64
	}
	at := map[key]int{}
	out := append([]baton.Serving(nil), old...)
	for i, s := range out {
		at[key{sessionEpoch{s.Session, s.Epoch}, s.Worker, s.Incarnation}] = i
	}
	for _, s := range more {
		k := key{sessionEpoch{s.Session, s.Epoch}, s.Worker, s.Incarnation}
		i, ok := at[k]
		if !ok {
			at[k] = len(out)
			out = append(out, s)
			continue
		}
		out[i].First, out[i].Last = min(out[i].First, s.First), max(out[i].Last, s.Last)
		out[i].Active = s.Active
	}
	return out
}
