package migrate

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// simulate runs moves through a pacer in virtual time: a pause is model(n) where
// n moves are under way. It returns how many took longer than the budget.
func simulate(p *pacer, moves int, model func(n int) time.Duration) (over int, took time.Duration) {
	type flight struct {
		end   time.Duration
		pause time.Duration
		began stamp
	}
	var under []flight
	now := time.Duration(0)
	for begun := 0; begun < moves || len(under) > 0; {
		for begun < moves && len(under) < p.room(now, 64) {
			pause := model(len(under) + 1)
			under = append(under, flight{now + pause, pause, p.now})
			begun++
		}
		if len(under) == 0 {
			now = max(p.rest, now+time.Millisecond)
			continue
		}
		first := 0
		for i := range under {
			if under[i].end < under[first].end {
				first = i
			}
		}
		f := under[first]
		now = max(now, f.end)
		p.paused(now, f.pause, f.began)
		under = append(under[:first], under[first+1:]...)
		if f.pause > p.budget {
			over++
		}
	}
	return over, now
}

// Whatever the machine is like, at most a hundredth of the pauses is past the
// budget once there are enough of them, and where one at a time is well within
// it, the pacer uses that.
func TestPacerKeepsBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := time.Duration(rapid.IntRange(100, 3000).Draw(t, "base µs")) * time.Microsecond
		each := time.Duration(rapid.IntRange(10, 3000).Draw(t, "each µs")) * time.Microsecond
		budget := time.Duration(rapid.IntRange(10, 100).Draw(t, "budget ms")) * time.Millisecond
		p := &pacer{}
		p.aim(budget)
		const moves = 3000
		over, _ := simulate(p, moves, func(n int) time.Duration { return base + time.Duration(n)*each })
		if over*100 > moves {
			t.Fatalf("%d of %d pauses past %v", over, moves, budget)
		}
	})
}

func TestPacerUsesItsBudget(t *testing.T) {
	model := func(n int) time.Duration { return time.Millisecond + time.Duration(n)*100*time.Microsecond }
	slow, fast := &pacer{}, &pacer{}
	slow.aim(2 * time.Millisecond)
	fast.aim(20 * time.Millisecond)
	_, a := simulate(slow, 2000, model)
	_, b := simulate(fast, 2000, model)
	if b*3 > a {
		t.Errorf("ten times the budget takes %v instead of %v", b, a)
	}
}

// A budget that cannot be kept makes it slow, never stuck.
func TestPacerNeverStops(t *testing.T) {
	p := &pacer{}
	p.aim(time.Millisecond)
	_, took := simulate(p, 100, func(int) time.Duration { return 50 * time.Millisecond })
	if most := 100 * (50*time.Millisecond + gapMax); took > most {
		t.Errorf("100 moves took %v, at most %v", took, most)
	}
}

func TestPacerWithoutBudget(t *testing.T) {
	p := &pacer{}
	p.paused(0, time.Hour, stamp{})
	if n := p.room(0, 32); n != 32 {
		t.Errorf("room %d", n)
	}
}

// Pauses of moves that began before a decrease do not decrease again: a wave is
// one event.
func TestPacerOneDecreaseAWave(t *testing.T) {
	p := &pacer{}
	p.aim(10 * time.Millisecond)
	p.window = 16
	began := p.now
	for range 16 {
		p.paused(0, 20*time.Millisecond, began)
	}
	if p.window != 8 {
		t.Errorf("window %v", p.window)
	}
}

func TestBucket(t *testing.T) {
	var b bucket
	begun := 0
	for now := time.Duration(0); now <= 10*time.Second; now += 7 * time.Millisecond {
		n := b.left(now, 50)
		if n > 10 {
			t.Fatalf("a burst of %d", n)
		}
		b.take(n)
		begun += n
	}
	if begun < 490 || begun > 511 {
		t.Errorf("%d in 10 s at 50 a second", begun)
	}
}
