package mutants

func init() { All = append(All, edges...) }

// edges takes out what holds where nodes drain, shut down, run out of room, or meet
// others that do not behave.
var edges = []Mutant{
	{
		Name: "relay-waits", Fault: "a relayed client that does not read holds up all others", Package: "rpcnet", Tests: "TestRelayedClientThatDoesNotReadHoldsUpNobody",
		Edits: []Edit{{"rpcnet/relay.go", "		last := endsStream(b)\n", "		if room := st.out.emptied(); room != nil {\n			select {\n			case <-room:\n			case <-ctx.Done():\n				return nil\n			}\n		}\n		last := endsStream(b)\n"}},
	},
	{
		Name: "full-for-good", Fault: "a connection that was full once is never used again", Package: "rpcnet", Tests: "TestFullConnectionIsUsedAgain",
		Edits: []Edit{{"rpcnet/client_pool.go", "pc.full > 0 && pc.streams >= pc.full", "pc.full > 0"}},
	},
	{
		Name: "names-in-dial-time", Fault: "a name that is looked up slowly is never dialled", Package: "rpcnet", Tests: "TestNamesHaveTimeOfTheirOwn",
		Edits: []Edit{{"rpcnet/client_resolve.go", "p.cfg.clock.AfterFunc(resolveTime, cancel)", "p.cfg.clock.AfterFunc(p.cfg.dialTimeout, cancel)"}},
	},
	{
		Name: "one-misfit-ends", Fault: "one node whose certificate has run out ends what others would serve", Package: "rpcnet", Tests: "TestOneMisfitIsPassedOver",
		Edits: []Edit{{"rpcnet/route_frames.go", "return !c.book.hasOthers(c.misfits, c.cfg.relay)", "return true"}},
	},
	{
		Name: "methods-are-bytes", Fault: "a call that no frame can carry is waited for", Package: "rpcnet", Tests: "TestMethodsAreText",
		Edits: []Edit{{"rpcnet/stream_decode.go", "case !utf8.ValidString(name):", "case false && !utf8.ValidString(name):"}},
	},
	{
		Name: "first-frame-keeps-all", Fault: "a stranger has a node keep a megabyte a stream", Package: "rpcnet", Tests: "TestClientFramesAreChecked",
		Edits: []Edit{{"rpcnet/stream_decode.go", "if len(b) > firstBytesMax {", "if false && len(b) > firstBytesMax {"}},
	},
	{
		Name: "secret-is-early", Fault: "an attach with a secret is acted on when it is replayed", Package: "rpcnet", Tests: "TestOnlyAWarmAttachIsServedEarly",
		Edits: []Edit{{"rpcnet/early.go", "len(a.GetToken()) > 0 && ", ""}},
	},
	{
		Name: "hello-of-all", Fault: "clients refuse the list of a large cluster's nodes", Package: "rpcnet", Tests: "TestHelloOfManyNodes",
		Edits: []Edit{{"rpcnet/server.go", "size > helloBytesMax && len", "size < 0 && len"}},
	},
	{
		Name: "opens-here", Fault: "a node that drains gets new sessions", Package: "worker", Tests: "TestOpenAtADrainingNode",
		Edits: []Edit{{"worker/open.go", "Owner: w.ownerOfNew(f.GetSession())", "Owner: w.owner()"}},
	},
	{
		Name: "reads-without-room", Fault: "a query behind a write that is refused for want of room is not run", Package: "worker", Tests: "TestQueriesBehindARefusedWrite",
		Edits: []Edit{{"worker/ack.go", "	s.wantAcks()\n	s.runReads(q)\n", "	s.wantAcks()\n"}},
	},
	{
		Name: "forgets-the-slow", Fault: "a move that took long is forgotten with the command that ends it", Package: "store", Tests: "TestSlowMigrationIsRemembered",
		Edits: []Edit{
			{"store/index.go", "s.ended.Set(numbered{m.endedUS, m.id})", "s.ended.Set(numbered{0, m.id})"},
			{"store/index.go", "s.ended.Delete(numbered{m.endedUS, m.id})", "s.ended.Delete(numbered{0, m.id})"},
		},
	},
	{
		Name: "fenced-drains-on", Fault: "a drain that was called off while its node was fenced goes on", Package: "store", Tests: "TestUndrainOfAFencedWorker",
		Edits: []Edit{{"store/job.go", "case w.state == wire.WorkerState_WORKER_STATE_FENCED && w.job == drain.id:", "case false && w.job == drain.id:"}},
	},
	{
		Name: "trim-is-rollback", Fault: "a server promises before it has applied what its log held", Package: "cluster", Tests: "TestTrimIsNoRollback",
		Edits: []Edit{{"cluster/guard.go", "if hi >= last {", "if last > 0 {"}},
	},
	{
		Name: "panic-accepts", Fault: "an application that panics when it is asked about a move has accepted it", Package: ".", Tests: "TestConfirmMoveThatFails",
		Edits: []Edit{{"confirm.go", "c = migrate.Reject(\"the application failed when it was asked\")", "c = migrate.Accept()"}},
	},
	{
		Name: "shutdown-fails", Fault: "a node that is stopped fails for a drain that was called off", Package: ".", Tests: "TestShutdownWithoutItsDrain",
		Edits: []Edit{{"shutdown.go", "if wire.CodeOf(err) == wire.Code_JOB_NOT_DONE {", "if wire.CodeOf(err) == wire.Code_JOB_NOT_DONE && false {"}},
	},
	{
		Name: "ended-keeps-its-place", Fault: "a stream that a move has ended keeps its place for half a minute", Package: ".", Tests: "TestStreamsThatCannotMoveLeaveTheirPlaces",
		Edits: []Edit{{"rpcnet/bulk_link.go", "return final || refused && code == wire.Code_OK", "return true"}},
	},
	{
		Name: "doubt-is-loss", Fault: "a stream that is opened while its session moves is lost", Package: "worker", Tests: "TestStreamInDoubt",
		Edits: []Edit{{"worker/stream_table.go", "f.GetBorn() < since || f.GetBorn() > e.epoch", "f.GetBorn() != e.epoch"}},
	},
	{
		Name: "loss-is-doubt", Fault: "a stream that may have begun at an owner that is gone begins again", Package: "worker", Tests: "TestStreamInDoubt",
		Edits: []Edit{{"worker/session.go", "first, since := res.GetPosition(), res.GetRow().GetEpoch()", "first, since := res.GetPosition(), uint64(1)"}},
	},
	{
		Name: "lost-begins-again", Fault: "a stream begins again that has ended without its client's hearing of either", Package: "worker", Tests: "TestLostStreamBeginsOnce",
		Edits: []Edit{{"worker/stream_table.go", "f.GetStream() <= e.lost[string(f.GetInstance())]", "false"}},
	},
	{
		Name: "lost-is-not-carried", Fault: "likewise, at the target of a move", Package: "worker", Tests: "TestLostStreamBeginsOnce",
		Edits: []Edit{{"worker/stream_move.go", "if len(e.lost) > 0 {", "if false {"}},
	},
	{
		Name: "ended-behind-the-move", Fault: "streams of a session that expired in the middle of a move stay for ever", Package: "worker", Tests: "TestStreamsEndWithTheirSession",
		Edits: []Edit{{"worker/stream_move.go", "defer t.observe(row.GetId(), t.w.cfg.View)", "_ = row"}},
	},
	{
		Name: "word-is-forgotten", Fault: "an operator's word that a node is gone is forgotten at the next look", Package: "migrate", Tests: "TestFenceByOperator",
		Edits: []Edit{{"migrate/detect.go", "sus.gone = gone || len(sus.asked) > 0", "sus.gone = gone"}},
	},
	{
		Name: "no-room-at-once", Fault: "what the log has no room for is proposed at once and again", Package: "migrate", Tests: "TestReassignmentWaitsForRoom",
		Edits: []Edit{{"migrate/upkeep.go", "		if err != nil {\n			return // the log may", "		if false {\n			return // the log may"}},
	},
	{
		Name: "judged-once", Fault: "the end of a drain is an error where the cluster has no quorum when it is judged", Package: "test/sim", Tests: "TestJobIsJudgedAfterAnElection",
		Edits: []Edit{{"admin_drain.go", "if err != nil && !wire.CodeOf(err).Retryable() {", "if err != nil && (r.Ended() || !wire.CodeOf(err).Retryable()) {"}},
	},
	{
		Name: "unconfirmed-but-draining", Fault: "a drain that nobody confirmed leaves its node draining when its time is over", Package: "migrate", Tests: "TestDrainThatEndsUnconfirmed",
		Edits: []Edit{{"migrate/jobs.go", "Undrain: row.GetConfirmByUs() != 0,", ""}},
	},
	{
		Name: "silence-is-refusal", Fault: "a node that joins is refused for good while the one with the authority's key is silent", Package: ".", Tests: "TestAuthorityIsSilent",
		Edits: []Edit{{"jointoken.go", "if len(silent) > 0 {", "if false {"}},
	},
}
