package mutants

// All mutants. A rule is taken out at each place that keeps it: a guard whose
// twin stands would only show that the twin works.
var All = []Mutant{
	{
		// Commands whose outcome was lost are proposed again, and reach the
		// state machine twice.
		Name: "dedup", Fault: "a seq that is settled is applied again", Package: "store", Nemesis: "sever,move-leader",
		Edits: []Edit{
			{"store/write.go", "if i, ok := w.findReply(seq); ok {", "if i, ok := w.findReply(seq); ok && seq == 0 {"},
			{"store/write.go", "case seq < w.ack || seq <= w.last:", "case false:"},
			{"store/write.go", "case prev != w.last:", "case false:"},
		},
	},
	{
		// An owner that was fenced and does not know it goes on serving. Here it
		// is the news that are late; a process that slept past its failover learns
		// them within milliseconds of waking up.
		Name: "stale-owner", Fault: "epoch, incarnation and previous seq are not checked", Package: "store", Nemesis: "fence-late,pause",
		Edits: []Edit{
			{"store/session.go", "case r.epoch != epoch:", "case false:"},
			{"store/session.go", "case r.owner != ownerOf(o) || !s.valid(r.owner):", "case false:"},
			{"store/worker.go", "if !s.valid(ownerOf(c.GetOwner())) {", "if false {"},
			{"store/write.go", "case prev != w.last:", "case false:"},
		},
	},
	{
		Name: "no-epoch-check", Fault: "an owner's commands of an earlier epoch are taken", Package: "store",
		Edits: []Edit{{"store/session.go", "case r.epoch != epoch:", "case false:"}},
	},
	{
		Name: "no-incarnation-check", Fault: "a fenced incarnation's commands are taken", Package: "store",
		Edits: []Edit{{"store/session.go", "case r.owner != ownerOf(o) || !s.valid(r.owner):", "case false:"}},
	},
	{
		Name: "no-previous-seq", Fault: "a write is applied though the one before it was not", Package: "store",
		Edits: []Edit{{"store/write.go", "case prev != w.last:", "case false:"}},
	},
	{
		Name: "read-marker", Fault: "a fenced incarnation's reads are confirmed", Package: "store",
		Edits: []Edit{{"store/worker.go", "if !s.valid(ownerOf(c.GetOwner())) {", "if false {"}},
	},
	{
		Name: "dedup-lost-in-snapshot", Fault: "cached replies do not survive a snapshot", Package: "store",
		Edits: []Edit{{"store/proto.go", "for i := range w.replies {", "for i := range w.replies[:0] {"}},
	},
	{
		Name: "cache-keeps-answers", Fault: "a cached log entry keeps what was answered to it", Package: "cluster", Tests: "TestLogCacheKeepsEntriesOnly",
		Edits: []Edit{{"cluster/guard.go", "kept := *e // e is part of raft's future, which holds the entry's results\n\t\tc.ring[e.Index%logCacheEntries] = &kept", "c.ring[e.Index%logCacheEntries] = e"}},
	},
	{
		Name: "sleep-is-the-disks", Fault: "a node that was stopped for long takes its sleep for the disk's", Package: "cluster", Tests: "TestGuardReportsWhileTheWriteHangs",
		Edits: []Edit{{"cluster/awake.go", "awakeSteps = 4", "awakeSteps = 1"}},
	},
	{
		Name: "packed-forgets", Fault: "a session at rest forgets its highest attachment, and a late Attach opens it anew", Package: "store",
		Edits: []Edit{{"store/pack.go", "r.epoch, r.attachHigh, r.expiresUS", "r.epoch, 0, r.expiresUS"}},
	},
	{
		Name: "packed-in-use", Fault: "what is changed in a session at rest is not packed again", Package: "store",
		Edits: []Edit{{"store/index.go", "id, atRest := r.id, !now.attached", "id, atRest := r.id, false"}},
	},
	{
		Name: "index-has-its-own", Fault: "the indexes keep a packed session's former row", Package: "store",
		Edits: []Edit{{"store/index.go", "if atRest || old.expires != now.expires {", "if old.expires != now.expires {"}},
	},
	{
		Name: "crumbs", Fault: "a snapshot's block may hold any number of parts", Package: "fsm", Tests: "TestCrumbsAllocateLittle",
		Edits: []Edit{{"fsm/file.go", "blockItemsMax = itemsMax + blockBytes/2", "blockItemsMax = 1 << 40"}},
	},
	{
		Name: "snapshots-by-count", Fault: "snapshots are taken however large the state", Package: "cluster", Tests: "TestSnapshotIsDueForHalfAsMuchLogAsState",
		Edits: []Edit{{"cluster/compact.go", " && b.Bytes >= half+half*turn/(4*snapshotTurns)", " && half >= 0"}},
	},
	{
		Name: "leads-while-it-closes", Fault: "a leader that closes leads until its snapshot is written", Package: "cluster", Tests: "TestCloseDuringSnapshot",
		Edits: []Edit{{"cluster/cluster.go", "c.compacts.Go(func() { c.compact(c.ctx) })", "c.wg.Go(func() { c.compact(c.ctx) })"}},
	},
	{
		Name: "not-attested", Fault: "a pivot is taken without the source's freeze", Package: "store",
		Edits: []Edit{{"store/migration.go", "case s.valid(m.source) && c.GetAttested() != m.id:", "case false:"}},
	},
	{
		Name: "stale-snapshot", Fault: "a pivot is taken though the row changed behind the snapshot", Package: "store",
		Edits: []Edit{{"store/migration.go", "case c.GetChange() != r.change:", "case false:"}},
	},
	{
		Name: "pivot-late", Fault: "a pivot is taken past its deadline", Package: "store",
		Edits: []Edit{{"store/migration.go", "case s.timeUS > m.deadlineUS:", "case false:"}},
	},
	{
		Name: "pivot-epoch", Fault: "a pivot is taken in another epoch, from another owner", Package: "store",
		Edits: []Edit{
			{"store/migration.go", "case r.epoch != m.sourceEpoch:", "case false:"},
			{"store/migration.go", "case r.owner != m.source:", "case false:"},
		},
	},
	{
		Name: "pivot-to-the-dead", Fault: "a pivot is taken to a fenced target", Package: "store",
		Edits: []Edit{{"store/migration.go", `	case !s.valid(m.target):
		return wire.Code_TARGET_STALE
	case c.GetChange()`, `	case c.GetChange()`}},
	},
	{
		Name: "pivot-after-abort", Fault: "an aborted migration can pivot", Package: "store",
		Edits: []Edit{{"store/migration.go", `	default:
		res.Code = wire.Code_MIGRATION_ENDED
		return
	}
	if res.Code = s.checkPivot`, `	}
	if res.Code = s.checkPivot`}},
	},
	{
		Name: "two-migrations", Fault: "a session may be in two migrations at once", Package: "store",
		Edits: []Edit{{"store/migration.go", "case r.migration != 0:", "case false:"}},
	},
	{
		Name: "token-of-the-past", Fault: "a used, expired or revoked token is taken", Package: "migrate",
		Edits: []Edit{{"migrate/token.go", "switch StateOfToken(m, nowUS) {", "switch TokenActive {"}},
	},
	{
		Name: "assign-over-owner", Fault: "a session that has a valid owner is given another", Package: "store",
		Edits: []Edit{{"store/session.go", `	case s.valid(r.owner):
		res.Code = wire.Code_OWNER_VALID
		return
`, ""}},
	},
	{
		Name: "assign-leaves-migration", Fault: "a reassigned session's migration lives on", Package: "store",
		Edits: []Edit{{"store/session.go", `s.edit(s.endMigrationOf(r, "session reassigned"))`, "s.edit(r)"}},
	},
	{
		Name: "epoch-reset", Fault: "epochs begin anew when a session is opened again", Package: "store",
		Edits: []Edit{{"store/session.go", "r.epoch = s.nextEpoch()", "r.epoch++; s.nextEpoch()"}},
	},
	{
		Name: "expiry-while-attached", Fault: "a session expires though a client is attached", Package: "store",
		Edits: []Edit{{"store/session.go", "case r.attached() || r.expiresUS > s.timeUS:", "case r.expiresUS > s.timeUS:"}},
	},
	{
		Name: "delayed-attach", Fault: "a delayed Attach undoes a later Detach", Package: "store",
		Edits: []Edit{{"store/attach.go", "if c.GetNumber() <= r.attachHigh {", "if false {"}},
	},
	{
		Name: "delayed-detach", Fault: "a delayed Detach closes a later attachment", Package: "store",
		Edits: []Edit{{"store/attach.go", "return a.number == c.GetNumber()", "return a.number >= c.GetNumber()"}},
	},
	{
		Name: "revived-session", Fault: "a delayed Open brings a closed session back", Package: "store",
		Edits: []Edit{{"store/session.go", "); ok {\n		return old.why", "); ok && old == nil {\n		return old.why"}},
	},
	{
		Name: "time-runs-back", Fault: "log time follows whoever leads", Package: "store",
		Edits: []Edit{{"store/store.go", "s.timeUS = max(s.timeUS, e.GetTimeUs())", "s.timeUS = e.GetTimeUs()"}},
	},
	{
		Name: "wall-clock", Fault: "log time comes from the leader's wall clock", Package: "test/sim", Tests: "TestWallClockSteps",
		Edits: []Edit{{"cluster/lead.go", "TimeUs:   r.stampUS(c.cfg.Clock),", "TimeUs:   uint64(c.cfg.Clock.Wall().UnixMicro()),"}},
	},
	{
		Name: "unknown-skipped", Fault: "an unknown command passes as readable", Package: "fsm",
		Edits: []Edit{{"fsm/entry.go", "if !store.Known(c) {", "if !store.Known(c) && c == nil {"}},
	},
	{
		Name: "snapshot-unchecked", Fault: "a damaged block of a snapshot is restored", Package: "fsm",
		Edits: []Edit{{"fsm/file.go", "if xxhash.Sum64(b.comp.Bytes()) != binary.BigEndian.Uint64(header[8:]) {", "if false {"}},
	},
	{
		Name: "activation-with-a-gap", Fault: "an activation advances past what it has not seen", Package: "worker",
		Edits: []Edit{{"worker/execute.go", "follows := !s.stale && !res.GetDuplicate() && res.GetBefore() == s.act.change && res.GetDigest() == cmd.GetWrite().GetDigest()", "follows := true"}},
	},
	{
		Name: "unfreeze-unasked", Fault: "a source goes on serving before the log has told the outcome", Package: "worker",
		Edits: []Edit{{"worker/source.go", `		if res[1].GetCode() != wire.Code_OK {
			s.moved()
			return res[0].GetMigration()
		}
`, ""}},
	},
	{
		Name: "older-claim", Fault: "an abort whose answer comes late takes the activation back", Package: "worker", Tests: "TestWriteOvertakesTheAbort",
		Edits: []Edit{{"worker/source.go", "case s.busy && f.last == 0, s.act != nil && claim.GetPosition() < s.act.last:", "case s.busy && f.last == 0:"}},
	},
	{
		Name: "read-overtakes-write", Fault: "a query does not wait for its client's earlier writes", Package: "worker",
		Edits: []Edit{{"worker/read.go", "if seq < r.seq {", "if seq < r.seq && seq == 0 {"}},
	},
	{
		// An owner that slept past its failover answers what it finds in its
		// socket.
		Name: "early-clock", Fault: "the lease's clock is read before the query arrives",
		Package: "worker", Tests: "TestReadsOfPausedOwners", Nemesis: "oversleep",
		Edits: []Edit{
			{"worker/requests.go", `		f, err := att.link.Recv()
`, `		att.left, att.holds = w.lease(w.Incarnation())
		f, err := att.link.Recv()
`},
			{"worker/read.go", `	left, ok := s.w.lease(rd.act.owner.GetIncarnation())`, `	left, ok := rd.att.left, rd.att.holds`},
			{"worker/session.go", `	link   Link
`, `	link   Link
	left   time.Duration
	holds  bool
`},
		},
	},
	{
		// An answer is under way for longer than the lease lasts that it was given
		// under.
		Name: "no-receiver-check", Fault: "the client takes answers under leases whenever they come",
		Package: "rpcnet", Tests: "TestModel", Nemesis: "late-answers", Client: true,
		Edits: []Edit{{"rpcnet/answers.go", `	if c.readBoot(now)-p.bootAt < left {`, `	if left > 0 {`}},
	},
	{
		Name: "receiver-clock-kept", Fault: "the client holds an answer under a lease against a former reading of its clock", Package: "rpcnet", Tests: "TestLeaseAnswerAfterASleep",
		Edits: []Edit{{"rpcnet/answers.go", "c.readBoot(now)-p.bootAt", "c.bootBefore(now)-p.bootAt"}},
	},
	{
		Name: "lower-epoch", Fault: "a client takes answers of an epoch that is over", Package: "rpcnet",
		Edits: []Edit{{"rpcnet/answers.go", "if resp.GetEpoch() < c.epoch {", "if false {"}},
	},
	{
		Name: "resume-confirms", Fault: "a job that waits for an operator is resumed without one", Package: "store", Tests: "TestJobConfirmation",
		Edits: []Edit{{"store/job.go", "if j.confirmByUS != 0 && j.state != wire.JobState_JOB_STATE_PAUSED {", "if false {"}},
	},
	{
		Name: "nobody-confirms", Fault: "a move begins before an operator has confirmed it", Package: "migrate", Tests: "TestOperatorConfirms",
		Edits: []Edit{{"migrate/forward.go", "	if h.p.Approval > 0 {", "	if false {"}},
	},
	{
		Name: "request-outlives-caller", Fault: "a move waits for an operator though nobody waits for it", Package: "migrate", Tests: "TestRequestsAreNotOrphaned",
		Edits: []Edit{{"migrate/decide.go", "	if r.waiting[m] {", "	if r.waiting[m] && code != wire.Code_CANCELLED {"}},
	},
	{
		Name: "all-paused-at-once", Fault: "any number of sessions is handed over at once", Package: "migrate", Tests: "TestFewHandoversAtOnce",
		Edits: []Edit{{"migrate/gate.go", " && len(g.inside) < r.cfg.HandoversMax", ""}},
	},
	{
		Name: "slow-handovers-block", Fault: "handovers that take long keep others waiting", Package: "migrate", Tests: "TestSlowHandoversHoldUpNobody",
		Edits: []Edit{{"migrate/gate.go", "const handoverSlow = 100 * time.Millisecond", "const handoverSlow = time.Hour"}},
	},
	{
		Name: "handover-of-an-ended-move", Fault: "a move that ended while it waited is handed over", Package: "migrate", Tests: "TestMoveEndsBeforeItsHandover",
		Edits: []Edit{{"migrate/gate.go", "if _, ok := r.moves[q.m]; !ok {", "if false {"}},
	},
	{
		Name: "deaf-source", Fault: "a source whose target is silent does not hear that the move was called off", Package: "worker", Tests: "TestTransferToASilentTarget",
		Edits: []Edit{{"worker/transfer.go", "	t.late = late\n", ""}},
	},
	{
		Name: "misses-a-move", Fault: "a client that stands by is sent away where its owner was lost right after a move", Package: "worker", Tests: "TestStandbyMissesAMove",
		Edits: []Edit{{"worker/standby.go", " && st.ByMigration(sb.req.GetSession())", ""}},
	},
	{
		Name: "connection-remembers", Fault: "a connection counts sessions that have left it", Package: "rpcnet", Tests: "TestConnectionsAndTheirSessions",
		Edits: []Edit{{"rpcnet/server.go", "	delete(st.conn.sessions, st)\n", ""}},
	},
	{
		Name: "connection-without-end", Fault: "a connection carries any number of sessions", Package: "rpcnet", Tests: "TestConnectionIsFull",
		Edits: []Edit{{"rpcnet/conns.go", "	full := !st.conn.relayed &&", "	full := false &&"}},
	},
	{
		Name: "silence-at-once", Fault: "a worker renews its lease only while a leader is heard", Package: "test/sim", Tests: "TestReadsRideThroughElections",
		Edits: []Edit{{"lease/holder.go", "return now-h.leader > SilenceLeases*t", "return now-h.leader > t/2"}},
	},
	{
		Name: "no-self-fence", Fault: "a worker whose machine has slept goes on", Package: "test/sim", Tests: "TestSuspendedMachine",
		Edits: []Edit{{"lease.go", "return after-before > lease.Margin", "return false && after > before"}},
	},
	{
		Name: "owner-on-a-bad-disk", Fault: "a node that is silent, as its disk hangs, keeps its sessions", Package: "test/sim", Tests: "TestBadDiskOfOneServer",
		Edits: []Edit{{"node.go", ", OnMute: n.muted", ""}},
	},
	{
		Name: "withdrawal-of-one-round", Fault: "a withdrawal counts only in the round in which it came", Package: "lease", Tests: "TestPollWithAServerThatFallsSilent",
		Edits: []Edit{{"lease/poll.go", "return a.Withdrawn || a.round == round", "return a.round == round"}},
	},
	{
		Name: "poll-until-it-dies", Fault: "a leader that asked for withdrawals suspects a worker that came back for as long as it lives", Package: "lease", Tests: "TestPollOfAWorkerThatComesBack",
		Edits: []Edit{{"lease/poll.go", "	p.withdrawing = p.withdrawing && p.isOut\n", ""}},
	},
	{
		Name: "short-rounds", Fault: "servers more than 50 ms away from the leader have no say in a poll: nobody is ever fenced", Package: "lease", Tests: "TestPoll",
		Edits: []Edit{{"lease/poll.go", "		p.wait = min(2*p.wait, max(pollRound, p.t/2))\n", ""}},
	},
	{
		Name: "epochs-of-a-former-cluster", Fault: "a restored cluster counts epochs on where its backup ended", Package: "store",
		Edits: []Edit{{"store/rebirth.go", "b.ClusterID, next+EpochLeap", "b.ClusterID, next"}},
	},
	{
		Name: "owners-of-a-former-cluster", Fault: "a restored cluster assigns while leases of the former one may run", Package: "store",
		Edits: []Edit{{"store/rebirth.go", "return s.timeUS < s.assignAfterUS", "return false"}},
	},
	{
		Name: "incarnations-of-a-former-cluster", Fault: "a restored cluster fences nobody", Package: "store",
		Edits: []Edit{{"store/rebirth.go", "	s.fenceAll(why)\n", ""}},
	},
	// What follows are the rules whose want was a counterexample to a draft; see
	// test/explore/ledger_test.go.
	{
		Name: "epoch-of-index", Fault: "an epoch is the index of its entry", Package: "test/explore",
		Edits: []Edit{{"store/store.go", "	s.epochs++\n	return s.epochs", "	s.epochs = max(s.epochs, s.index)\n	return s.epochs"}},
	},
	{
		Name: "assign-any-epoch", Fault: "an Assign does not name the epoch that it replaces", Package: "test/explore",
		Edits: []Edit{{"store/session.go", "case r.epoch != c.GetReplaces():", "case false:"}},
	},
	{
		Name: "assign-keeps-attachments", Fault: "attachments outlive their epoch", Package: "test/explore",
		Edits: []Edit{{"store/session.go", "	s.detachAll(r)\n", ""}},
	},
	{
		Name: "pivot-keeps-attachments", Fault: "attachments outlive a pivot", Package: "test/explore",
		Edits: []Edit{{"store/migration.go", "	s.detachAll(r)\n", ""}},
	},
	{
		Name: "one-window", Fault: "seqs are counted by session, not by client instance", Package: "test/explore",
		Edits: []Edit{{"store/write.go", "	if i, ok := w.findReply(seq); ok {", "	w = &r.windows[0]\n	if i, ok := w.findReply(seq); ok {"}},
	},
	{
		Name: "any-place", Fault: "a worker is succeeded at once by a start on another machine", Package: "test/explore",
		Edits: []Edit{{"store/worker.go", " && !at.follows(old.place) {", " && false {"}},
	},
	{
		Name: "attach-refused-for-space", Fault: "a full cluster refuses control commands", Package: "store",
		Edits: []Edit{{"store/attach.go", "	drop := \"\"\n", "	if s.overBudget(1) {\n		res.Code = wire.Code_BUDGET_EXCEEDED\n		return\n	}\n	drop := \"\"\n"}},
	},
	{
		Name: "errors-not-kept", Fault: "the outcome of a handler that failed is not kept", Package: "test/explore",
		Edits: []Edit{{"store/write.go", "	r.addReply(&s.h, w, p)\n", "	if p.code == wire.Code_OK {\n		r.addReply(&s.h, w, p)\n	}\n"}},
	},
	{
		Name: "detach-once", Fault: "a Detach that the log had no room for is not repeated", Package: "worker",
		Edits: []Edit{{"worker/attach.go", "		insist: true,\n", ""}},
	},
	{
		Name: "serves-the-detached", Fault: "a client is served while its Detach is with the log", Package: "worker",
		Edits: []Edit{{"worker/attach.go", "				delete(s.queues, att.name)\n", ""}},
	},
	{
		Name: "activates-under-freeze", Fault: "a result activates a session that is frozen", Package: "worker",
		Edits: []Edit{{"worker/attach.go", "			case s.freeze != nil:\n", "			case false:\n"}},
	},
	{
		Name: "orphans-stay", Fault: "who was warm and is gone stays attached after the pivot", Package: "worker",
		Edits: []Edit{{"worker/target.go", "		s.detachOrphans()\n	}\n	for client, c := range in.warm {", "	}\n	for client, c := range in.warm {"}},
	},
	{
		Name: "restart-withdraws", Fault: "a server that has restarted withdraws at once", Package: "lease",
		Edits: []Edit{{"lease/server.go", "		s.quiet = now + TMax\n", "		s.quiet = now\n"}},
	},
	{
		Name: "promise-after-withdrawal", Fault: "a server promises what it has agreed to fence", Package: "lease",
		Edits: []Edit{{"lease/server.go", "	case s.withdrawn[r.Incarnation]:\n		return wire.Code_LEASE_WITHDRAWN\n", ""}},
	},
	{
		Name: "grant-in-any-config", Fault: "a server promises in a configuration of voters that is not its own", Package: "lease",
		Edits: []Edit{{"lease/server.go", "case f.Logged != r.Config || f.Applied != r.Config:", "case false:"}},
	},
	{
		Name: "expects-what-is-over", Fault: "a target expects for ever a move that ended as it was told of it", Package: "worker", Tests: "TestExpectedAsItEnds",
		Edits: []Edit{{"worker/target.go", "	// Its end may have been observed before: then nothing else would end this.\n	w.observeMigration(m.GetId())\n", ""}},
	},
	{
		Name: "open-by-a-stale-clock", Fault: "the first session of a cluster that was idle is refused as too late", Package: "worker", Tests: "TestOpenByAStaleClock",
		Edits: []Edit{{"worker/open.go", "!= wire.Code_OPEN_TOO_LATE || again {", "!= wire.Code_OPEN_TOO_LATE || !again {"}},
	},
	{
		Name: "opened-without-secret", Fault: "who repeats an Open is attached whatever the secret", Package: "worker", Tests: "TestRepeatedOpenNeedsTheSecret",
		Edits: []Edit{{"worker/open.go", "if !secretMatches(f.GetSecret(), ", "if row == nil && !secretMatches(f.GetSecret(), "}},
	},
	{
		Name: "displaced-closes", Fault: "a client closes the session after it was displaced", Package: "worker", Tests: "TestDisplacedClientClosesNothing",
		Edits: []Edit{{"worker/attach.go", "s.act == nil || q == nil || q.att != att {\n				link.Bye(", "s.act == nil || q != q {\n				link.Bye("}},
	},
	{
		Name: "handshakes-without-end", Fault: "any number of handshakes are worked on at once", Package: "rpcnet", Tests: "TestHerd",
		Edits: []Edit{{"rpcnet/admission.go", "if p.busy >= p.max {", "if false {"}},
	},
	{
		Name: "crowd-is-impatient", Fault: "a handshake that waits in a crowd is given up as soon as another", Package: "rpcnet", Tests: "TestHerd",
		Edits: []Edit{{"rpcnet/client_pool.go", "if crowd {", "if crowd && p.closed {"}},
	},
	{
		Name: "crowd-forgets", Fault: "a crowd is over for who has reached the successor", Package: "rpcnet", Tests: "TestCrowdOutlastsTheSuccessorsWord",
		Edits: []Edit{{"rpcnet/route_standby.go", "if s := &c.stand; now < s.crowdEnd {", "if s := &c.stand; false {"}},
	},
	{
		Name: "crowd-hangs-up", Fault: "connections end in a crowd after as short a silence as elsewhere", Package: "rpcnet", Tests: "TestCrowdOutlastsAPause",
		Edits: []Edit{{"rpcnet/client_pool.go", "if crowd && p.cfg.crowd != nil {", "if false {"}},
	},
	{
		Name: "last-word-taken-back", Fault: "a node resets a stream before a late client has read its end", Package: "rpcnet", Tests: "TestLastWordWaitsForTheClient",
		Edits: []Edit{{"rpcnet/stream.go", "case waited < byeTimeouts && !st.srv.isClosing():", "case false:"}},
	},
	{
		Name: "node-hangs-up", Fault: "a node ends a crowd's connections as soon as others", Package: "rpcnet", Tests: "TestCrowdOutlastsAPause",
		Edits: []Edit{{"rpcnet/server_config.go", "MaxIdleTimeout:                 crowdIdles * c.IdleTimeout", "MaxIdleTimeout:                 c.IdleTimeout"}},
	},
	{
		Name: "crowd-scatters", Fault: "who is turned away in a crowd asks a node that does not take the session", Package: "rpcnet", Tests: "TestCrowdComesAgainToTheSuccessor",
		Edits: []Edit{{"rpcnet/route_standby.go", "case h.busy && !s.standing &&", "case false &&"}},
	},
	{
		Name: "attaches-twice", Fault: "a client attaches anew at a successor that is taking it in", Package: "rpcnet", Tests: "TestAttemptFindsTheSuccessorInOffice",
		Edits: []Edit{{"rpcnet/route_standby.go", "speaks := addr == r.addr &&", "speaks := false &&"}},
	},
	{
		Name: "slow-is-gone", Fault: "a node that lives and is slow is left like a dead one", Package: "rpcnet", Tests: "TestSlowOwnerIsNotLeft",
		Edits: []Edit{{"rpcnet/route_silence.go", "slow := c.slow(since) && c.quiet < slowMax", "slow := false"}},
	},
	{
		Name: "sleeper-judges", Fault: "a client that slept takes its node for dead before it has listened", Package: "rpcnet", Tests: "TestClientThatSleptListensFirst",
		Edits: []Edit{{"rpcnet/route_silence.go", "return c.listenedAt + c.silenceLimit()/listenPart", "return 0"}},
	},
	{
		Name: "join-token-twice", Fault: "a join token is good for any number of nodes", Package: "store",
		Edits: []Edit{{"store/jointoken.go", "	case t.usedUS != 0:\n		res.Code = wire.Code_TOKEN_USED\n	case s.timeUS >=", "	case s.timeUS >="}},
	},
	{
		Name: "join-token-forged", Fault: "a join token's id will do, without its secret", Package: "store",
		Edits: []Edit{{"store/jointoken.go", "if !found || subtle.ConstantTimeCompare(s.joinTokens[at].secretHash, c.GetSecretHash()) != 1 {", "if !found || subtle.ConstantTimeCompare(nil, nil) != 1 {"}},
	},
	{
		Name: "join-token-for-ever", Fault: "a join token never ends", Package: "store",
		Edits: []Edit{{"store/jointoken.go", "	case s.timeUS >= t.expiresUS:\n		res.Code = wire.Code_TOKEN_EXPIRED\n", ""}},
	},
	{
		Name: "secret-to-strangers", Fault: "a joining node tells its token to whoever answers", Package: "pki",
		Edits: []Edit{{"pki/token.go", "VerifyConnection:   func(cs tls.ConnectionState) error { _, err := t.verify(cs); return err },", "VerifyConnection:   func(cs tls.ConnectionState) error { return nil },"}},
	},
	{
		Name: "deposed-confirms", Fault: "a leader confirms reads though the voters may be in a later term", Package: "cluster", Tests: "TestDeposedLeaderConfirmsNothing",
		Edits: []Edit{{"cluster/confirm.go", "if agree > len(voters)/2 {\n		return true", "if true {\n		return true"}},
	},
	{
		Name: "asker-of-any-term", Fault: "who asks for a read's confirmation counts for it whatever its term", Package: "cluster", Tests: "TestMajorityIsOfVoters",
		Edits: []Edit{{"cluster/confirm.go", "id == asker && theirs == term:", "id == asker:"}},
	},
	{
		Name: "confirms-behind-commit", Fault: "a leader confirms reads by a state that lacks what is committed", Package: "cluster", Tests: "TestLaggingStateConfirmsNothing",
		Edits: []Edit{{"cluster/confirm.go", "if s.Index() >= committed {", "if committed > 0 {"}},
	},
	{
		Name: "barriers-wait", Fault: "a barrier at a follower is heard of there when raft next speaks to it", Package: "cluster", Tests: "TestWhatIsAwaitedIsAnnounced",
		Edits: []Edit{{"cluster/queue.go", "				if u.g.forwarded { // a barrier", "				if false { // a barrier"}},
	},
	{
		Name: "no-patience", Fault: "a server that is back after a while gets no entry for ten seconds", Package: "cluster", Tests: "TestPatientTransport",
		Edits: []Edit{{"cluster/patience.go", "		return a.back\n", "		return nil\n"}},
	},
	{
		Name: "no-portions", Fault: "a server that lacks many large entries is sent more than it takes, for ever", Package: "cluster", Tests: "TestPortions",
		Edits: []Edit{{"cluster/portions.go", "			req.Entries = req.Entries[:i]\n", ""}},
	},
	{
		Name: "never-halved", Fault: "a batch whose results are more than an answer holds is proposed for ever", Package: "cluster", Tests: "TestResultsThatFitNoAnswer",
		Edits: []Edit{{"cluster/proposer.go", "		p.queue.halve(b)\n", "		p.queue.requeue(b)\n"}},
	},
	{
		Name: "voters-heard-late", Fault: "servers hear of a change of the voters when raft next speaks to them, and promise nothing until then", Package: "cluster",
		Edits: []Edit{{"cluster/services.go", "	c.prop.tell() // until they have heard, servers promise workers nothing\n", ""}},
	},
	{
		Name: "markers-take-entries", Fault: "every read marker goes through the log", Package: "cluster", Tests: "TestMarkersTakeNoEntry",
		Edits: []Edit{{"cluster/propose.go", "if len(cmds) == 1 && cmds[0].GetReadMarker() != nil", "if len(cmds) == 0 && cmds[0].GetReadMarker() != nil"}},
	},
	{
		Name: "offered-again", Fault: "leadership is offered again to a server that has not taken notice of the first offer", Package: "cluster", Tests: "TestLeadershipIsOfferedOnceToTheSlow",
		Edits: []Edit{{"cluster/transfer.go", "!w.caughtUp() || w.last < r.lastOffered(s.ID):", "!w.caughtUp():"}},
	},
	{
		Name: "trapped-for-ever", Fault: "a leader whose raft refuses every write goes on", Package: "cluster", Tests: "TestTrappedLeaderStops",
		Edits: []Edit{{"cluster/transfer.go", "now-r.trapped > limit", "now < 0"}},
	},
}
