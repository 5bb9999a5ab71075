package mutants

func init() { All = append(All, idle...) }

// idle takes out what keeps an idle cluster's silence from hiding news.
var idle = []Mutant{
	{
		Name: "silent-for-ever", Fault: "a leader that has nothing new says nothing", Package: "cluster", Tests: "TestRepeatsAreLeftOut",
		Edits: []Edit{{"cluster/transport.go", "told == p.sent && now-p.at < p.t.repeatEvery", "told == p.sent"}},
	},
	{
		Name: "restart-not-told", Fault: "a follower whose heartbeats fail is told nothing when it is back", Package: "cluster", Tests: "TestRepeatsAreLeftOut",
		Edits: []Edit{{"cluster/transport.go", "		t.lost[to]++\n", ""}},
	},
	{
		Name: "commit-is-no-news", Fault: "followers do not hear of a commit that no entry announces", Package: "cluster", Tests: "TestRepeatsAreLeftOut",
		Edits: []Edit{{"cluster/transport.go", "args.PrevLogTerm, args.LeaderCommitIndex,", "args.PrevLogTerm, 0,"}},
	},
}
