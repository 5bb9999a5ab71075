package mutants

// All mutants.
var All = []Mutant{
	{
		Name:  "dedup",
		Fault: "a seq that is settled is applied again",
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
		Name:  "stale-owner",
		Fault: "epoch, incarnation and previous seq are not checked",
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
}
