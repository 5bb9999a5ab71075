// Package search is an explicit-state model checker: it visits, breadth first,
// every state that a model can reach, asks the model whether each is allowed,
// and whether from each a fair course of events leads to an end.
//
// A state is a comparable value without pointers, so it is copied by assignment
// and hashed as memory. Only its 64-bit fingerprint is kept, with the state it
// was first reached from, which makes the shortest story of a violation. Two
// states with one fingerprint would be taken for one: Report.Missed bounds the
// chance. What it knows nothing of: the model's meaning.
package search
