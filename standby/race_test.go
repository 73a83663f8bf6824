//go:build race

package standby_test

const raceEnabled = true
