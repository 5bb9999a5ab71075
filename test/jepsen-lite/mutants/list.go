package mutants

// All mutants. A rule is taken out at each place that keeps it: a guard whose
// twin stands would only show that the twin works.
var All = []Mutant{
	{
		// Commands whose outcome was lost are proposed again, and reach the
		// state machine twice.
		Name:   "dedup",
		Fault:  "a seq that is settled is applied again",
		Faults: "sever,move-leader",
		Edits: []Edit{{
			File: "store/write.go",
			Old: `	if i, ok := w.findReply(seq); ok {
		p := &w.replies[i]
		res.Duplicate = true
		res.Digest = p.digest
		res.Reply = p.proto()
		return true
	}
	switch {
	case seq < w.ack || seq <= w.last:
		res.Code = wire.Code_REPLY_GONE
		return true
	case prev != w.last:
		res.Code = wire.Code_SEQ_MISMATCH
		return true
	}
	return false`,
			New: `	return false`,
		}},
	},
	{
		// An owner that was fenced and does not know it goes on serving. Here it
		// is the news that are late; a process that slept past its failover learns
		// them within milliseconds of waking up.
		Name:   "stale-owner",
		Fault:  "epoch, incarnation and previous seq are not checked",
		Faults: "fence-late,pause",
		Edits: []Edit{{
			File: "store/session.go",
			Old: `	switch {
	case r.epoch != epoch:
		res.Code = wire.Code_STALE_EPOCH
		return nil
	case r.owner != ownerOf(o) || !s.valid(r.owner):
		res.Code = wire.Code_STALE_INCARNATION
		return nil
	}
	return r`,
			New: `	return r`,
		}, {
			File: "store/worker.go",
			Old: `	if !s.valid(ownerOf(c.GetOwner())) {
		res.Code = wire.Code_STALE_INCARNATION
	}`,
			New: ``,
		}, {
			File: "store/write.go",
			Old: `	case prev != w.last:
		res.Code = wire.Code_SEQ_MISMATCH
		return true
`,
			New: ``,
		}},
	},
	{
		// An owner that slept past its failover answers what it finds in its
		// socket.
		Name:    "early-clock",
		Fault:   "the lease's clock is read before the query arrives",
		Faults:  "pause",
		Package: "./worker", Tests: "TestReadsOfPausedOwners",
		Edits: []Edit{{
			File: "worker/requests.go",
			Old: `		f, err := att.link.Recv()
`,
			New: `		att.left, att.holds = w.lease(w.Incarnation())
		f, err := att.link.Recv()
`,
		}, {
			File: "worker/read.go",
			Old:  `	left, ok := s.w.lease(rd.act.owner.GetIncarnation())`,
			New:  `	left, ok := rd.att.left, rd.att.holds`,
		}, {
			File: "worker/session.go",
			Old: `	link   Link
`,
			New: `	link   Link
	left   time.Duration
	holds  bool
`,
		}},
	},
	{
		// An answer is under way for longer than the lease lasts that it was given
		// under.
		Name:    "no-receiver-check",
		Fault:   "the client takes answers under leases whenever they come",
		Faults:  "late-answers",
		Client:  true,
		Package: "./rpcnet", Tests: "TestModel",
		Edits: []Edit{{
			File: "rpcnet/requests.go",
			Old:  `	if now-p.sentAt < left {`,
			New:  `	if now >= p.sentAt {`,
		}},
	},
}
