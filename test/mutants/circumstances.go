package mutants

// A circumstance breaks no rule: it makes the product do often what may happen to
// it at any time, so that whether a mutant shows itself is not left to chance. The
// product without a mutant must stand it.
var (
	// LostAnswers: one in so many batches gets no answer from the log, though it is
	// in it, and is proposed again.
	LostAnswers = []Edit{
		{"cluster/proposer.go", "func newProposer(", "var answers atomic.Uint64\n\nfunc newProposer("},
		{
			"cluster/proposer.go", "\tif err == nil && len(results) != b.commands {",
			"\tif err == nil && answers.Add(1)%50 == 0 {\n\t\tresults, err = nil, wire.Errorf(wire.Code_UNAVAILABLE, \"the answer is lost\")\n\t}\n\tif err == nil && len(results) != b.commands {",
		},
	}
	// LateNews: a node without a lease, as one that woke up, hears of its own fence,
	// and of all that is in the log, a second later.
	LateNews = []Edit{
		{
			"worker/worker.go", "func (w *Worker) Observe(events []store.Event) {\n",
			"func (w *Worker) Observe(events []store.Event) {\n" +
				"\tif _, ok := w.lease(w.Incarnation()); !ok && w.Incarnation() != 0 {\n\t\ttime.AfterFunc(time.Second, func() { w.hear(events) })\n\t\treturn\n\t}\n\tw.hear(events)\n}\n\n" +
				"func (w *Worker) hear(events []store.Event) {\n",
		},
		{"lease.go", "\tif over {\n\t\tr.fenceSelf(renewal.Incarnation)", "\tif over {\n\t\ttime.AfterFunc(time.Second, func() { r.fenceSelf(renewal.Incarnation) })"},
	}
)

// In returns the mutant in a circumstance.
func (m Mutant) In(circumstance []Edit) Mutant {
	m.Edits = append(m.Edits[:len(m.Edits):len(m.Edits)], circumstance...)
	return m
}
