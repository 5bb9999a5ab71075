package main

import "testing"

// A refused call may have counted, once; anything beyond that was lost or twice.
func TestSurvivorsCompare(t *testing.T) {
	for _, tc := range []struct {
		name             string
		want, maybe, sum int64
		lost, twice      int64
	}{
		{"as it must be", 5, 0, 5, 0, 0},
		{"a refused one did not count", 5, 1, 5, 0, 0},
		{"a refused one counted", 5, 1, 6, 0, 0},
		{"it counted twice", 5, 1, 7, 0, 1},
		{"one counted twice", 5, 0, 6, 0, 1},
		{"two were lost", 5, 3, 3, 2, 0},
	} {
		v := newSurvivors(1)
		sv := &survivor{id: "s", want: tc.want, maybe: tc.maybe}
		v.compare(sv, tc.sum)
		if v.lost.Load() != tc.lost || v.duplicated.Load() != tc.twice {
			t.Errorf("%s: %d lost, %d twice; want %d, %d", tc.name, v.lost.Load(), v.duplicated.Load(), tc.lost, tc.twice)
		}
		if v.compare(sv, tc.sum); v.lost.Load() != tc.lost || v.duplicated.Load() != tc.twice {
			t.Errorf("%s: counted again", tc.name)
		}
	}
}
