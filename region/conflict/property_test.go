package conflict

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// drawWrites makes writes of one thing by up to four regions whose contexts are
// what real regions have: growing prefixes.
func drawWrites(t *rapid.T) (writes []version, ctxs []Vector) {
	applied := make([]Vector, rapid.IntRange(2, 4).Draw(t, "regions"))
	for range rapid.IntRange(1, 12).Draw(t, "writes") {
		r := rapid.IntRange(0, len(applied)-1).Draw(t, "region")
		o := rapid.IntRange(0, len(applied)-1).Draw(t, "heard")
		if applied[r][o] < applied[o][o] { // r hears of one more entry of o's
			applied[r][o] += rapid.Uint64Range(0, applied[o][o]-applied[r][o]).Draw(t, "entries")
		}
		w := version{dot: Dot{uint8(r), applied[r][r] + 1}, time: rapid.Uint64Range(1, 4).Draw(t, "time"),
			value: rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "value")}
		writes, ctxs = append(writes, w), append(ctxs, applied[r])
		applied[r][r]++
	}
	return writes, ctxs
}

// TestPutDoesNotDependOnOrder: any order that keeps each region's own gives
// the same register, at most one version per region, and those are the writes
// that no other one covers.
func TestPutDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		writes, ctxs := drawWrites(t)
		var all Vector
		for _, w := range writes {
			all[w.dot.Region] = max(all[w.dot.Region], w.dot.Pos)
		}
		var want []version
		for _, w := range writes {
			if !slices.ContainsFunc(ctxs, func(c Vector) bool { return c.Covers(w.dot) }) {
				want = append(want, w)
			}
		}
		slices.SortFunc(want, func(a, b version) int { return int(a.dot.Region) - int(b.dot.Region) })
		var r register
		var applied Vector
		left := make([]int, len(writes))
		for i := range left {
			left[i] = i
		}
		for len(left) > 0 {
			at := rapid.IntRange(0, len(left)-1).Draw(t, "next")
			for i, j := range left { // the region's first
				if writes[j].dot.Region == writes[left[at]].dot.Region {
					at = i
					break
				}
			}
			w := writes[left[at]]
			r.put(w, &ctxs[left[at]])
			applied[w.dot.Region] = w.dot.Pos
			r.trim(&applied)
			left = slices.Delete(left, at, at+1)
			for i := 1; i < len(r.versions); i++ {
				require.Less(t, r.versions[i-1].dot.Region, r.versions[i].dot.Region)
			}
		}
		require.Equal(t, all, applied)
		require.Equal(t, want, r.versions)
		require.Equal(t, Vector{}, r.pending)
	})
}

// TestRowsRoundTrip: what is written is read again.
func TestRowsRoundTrip(t *testing.T) {
	vector := rapid.Custom(func(t *rapid.T) (v Vector) {
		for i := range v {
			v[i] = rapid.Uint64().Draw(t, "u") >> rapid.IntRange(0, 64).Draw(t, "shift")
		}
		return v
	})
	reg := rapid.Custom(func(t *rapid.T) (r register) {
		for i := range uint8(rapid.IntRange(0, MaxRegions).Draw(t, "versions")) {
			r.versions = append(r.versions, version{Dot{i, rapid.Uint64().Draw(t, "pos")}, rapid.Uint64().Draw(t, "time"),
				rapid.String().Draw(t, "value")})
		}
		r.pending = vector.Draw(t, "pending")
		return r
	})
	rapid.Check(t, func(t *rapid.T) {
		n := &node{id: rapid.StringN(1, 10, 40).Draw(t, "id"), life: reg.Draw(t, "life"), labels: reg.Draw(t, "labels"), fill: reg.Draw(t, "fill")}
		for _, name := range rapid.SliceOfDistinct(rapid.String(), rapid.ID[string]).Draw(t, "names") {
			n.setProperty(name, reg.Draw(t, "property"))
		}
		if n.birth.dots = vector.Draw(t, "dots"); n.birth.known() {
			n.birth.past = vector.Draw(t, "past")
		}
		n.flags(0)
		back, err := decodeNode(n.id, rowOf(n.appendRow, 0))
		require.NoError(t, err)
		require.Equal(t, n, back)
		key := edgeKey{n.id, rapid.StringN(1, 10, 40).Draw(t, "type"), rapid.StringN(1, 10, 40).Draw(t, "to")}
		_, parts, err := splitRow(key.row())
		require.NoError(t, err)
		require.Equal(t, []string{key.from, key.relType, key.to}, parts)
		_, parts, err = splitRow(key.inRow())
		require.NoError(t, err)
		require.Equal(t, []string{key.to, key.from, key.relType}, parts)
	})
}

// TestClock: own times ascend, follow the wall, and stay above what was seen,
// unless that is further ahead than the bound, or at the end of the range.
func TestClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		last := rapid.Uint64Range(0, maxTime-2).Draw(t, "last")
		wall := rapid.Uint64().Draw(t, "wall")
		next := tick(last, wall)
		require.Greater(t, next, last)
		require.GreaterOrEqual(t, WallMS(next), min(wall, maxWallMS))
		remote := rapid.Uint64Range(0, maxTime-1).Draw(t, "remote")
		bound := rapid.Uint64Range(0, 1000).Draw(t, "bound")
		seen, ahead := observe(last, remote, wall, bound)
		require.GreaterOrEqual(t, seen, last)
		if ahead {
			require.Equal(t, last, seen)
			beyond := bound > 0 && WallMS(remote) > min(wall, maxWallMS)+bound
			require.True(t, beyond || remote >= maxFollowed)
		} else {
			require.GreaterOrEqual(t, seen, remote)
			require.Less(t, remote, uint64(maxFollowed))
		}
	})
}
