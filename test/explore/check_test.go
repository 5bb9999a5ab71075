package explore

import "fmt"

// What goes wrong in the taking of a step.
const (
	badRead = iota + 1
	badWrite
	badUncommitted
	badPush
)

var badWords = [...]string{
	badRead:        "P4: a query's answer is older than what was known when it was asked",
	badWrite:       "P3: a write's answer is not of its own",
	badUncommitted: "P2: an answer reveals what is not committed",
	badPush:        "P5: a durable push is gone that its client has not had",
}

func (w *world) Check(s *state) string {
	if s.bad != 0 {
		return badWords[s.bad]
	}
	f := w.b.facts(s.head)
	if f.row == 0 {
		for i := range f.moves {
			if f.moves[i].phase == begun {
				return "P6: a migration outlives its session"
			}
		}
		return ""
	}
	r := w.b.rows.at(uint32(f.row))
	if r.value != r.last[0]+r.last[1] {
		return fmt.Sprintf("P3: %d writes have left the counter at %d", r.last[0]+r.last[1], r.value)
	}
	if r.value < s.known {
		return fmt.Sprintf("P2: a client was told %d, and the state is %d", s.known, r.value)
	}
	for i := range f.moves {
		if m := &f.moves[i]; m.phase == begun && (r.mig != m.id || r.epoch != m.epoch) {
			return "P6: a migration is active that its session does not know, or in another epoch"
		}
	}
	for i := range w.nodes {
		if wrong := w.checkNode(s, i, &r, f); wrong != "" {
			return wrong
		}
	}
	for c := range w.clients {
		if s.c[c].over == 2 && (w.clients == 1 || w.shared) {
			return fmt.Sprintf("S7: client %c is told that it was displaced, and nobody has", 'a'+c)
		}
	}
	return ""
}

func (w *world) checkNode(s *state, i uint8, r *row, f *facts) string {
	n := &s.n[i]
	if n.act == 0 || n.up == 0 {
		return ""
	}
	mine := w.row(n)
	if n.stale == 0 && n.grp.prop == 0 && mine.epoch == r.epoch && mine.change == r.change &&
		(mine.value != r.value || mine.last != r.last || mine.num != r.num) {
		return fmt.Sprintf("S3: node %d's activation is not the row that it says it is", i+1)
	}
	if n.inc != mine.inc || !f.valid(i, n.inc) || n.frozen != 0 || n.stale == 1 {
		return ""
	}
	for c := range w.clients {
		if n.link[c] == linkServed && (mine.epoch != r.epoch || r.owner != i) {
			return fmt.Sprintf("P1: node %d serves epoch %d, and node %d owns epoch %d", i+1, mine.epoch, r.owner+1, r.epoch)
		}
	}
	return ""
}

// Settled: no migration is open, nobody waits for anything, and who is attached
// on record has a stream.
func (w *world) Settled(s *state) bool {
	f := w.b.facts(s.head)
	for i := range f.moves {
		if open(&f.moves[i]) {
			return false
		}
	}
	for d := range s.d {
		if s.d[d].h != 0 {
			return false
		}
	}
	for i := range w.nodes {
		n := &s.n[i]
		if n.grp.prop != 0 || n.rsv.prop != 0 || n.frozen != 0 || n.ho != hoNone || n.xMig != 0 || n.ops[0].kind != opNone {
			return false
		}
	}
	if f.row == 0 {
		return true
	}
	r := w.b.rows.at(uint32(f.row))
	if !f.valid(r.owner, r.inc) {
		return false
	}
	for c := range w.clients {
		if w.ask(&s.c[c]) != 0 {
			return false
		}
		if n := &s.n[r.owner]; r.num[c] != 0 && (n.link[c] != linkServed || n.num[c] != r.num[c]) {
			return false
		}
	}
	return true
}
