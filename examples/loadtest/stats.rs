//! Quartiles of a few figures.
//!
//! Owns: nothing. Threads: any. Locks: none. Blocks on: nothing.
//! Upholds: a ratio is formed inside its pair first and summarised afterwards, so that a slow minute of the machine
//! hits both of its sides.

/// The median of some figures and the middle half around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// A quarter lies below.
    pub q1: f64,
    /// Half lies below.
    pub median: f64,
    /// A quarter lies above.
    pub q3: f64,
}

/// Summarises `figures`; `None` when there are none.
///
/// A quantile that falls between two figures is interpolated linearly.
pub fn spread(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    Some(Spread { q1: quantile(&sorted, 0.25)?, median: quantile(&sorted, 0.5)?, q3: quantile(&sorted, 0.75)? })
}

fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_an_odd_count_are_figures_of_it() {
        let shuffled = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0];
        assert_eq!(spread(shuffled), Some(Spread { q1: 3.0, median: 5.0, q3: 7.0 }));
    }

    #[test]
    fn quartiles_of_an_even_count_lie_between() {
        assert_eq!(spread([1.0, 2.0, 3.0, 4.0]), Some(Spread { q1: 1.75, median: 2.5, q3: 3.25 }));
    }

    #[test]
    fn one_figure_is_all_three() {
        assert_eq!(spread([2.5]), Some(Spread { q1: 2.5, median: 2.5, q3: 2.5 }));
    }

    #[test]
    fn no_figures_have_no_median() {
        assert_eq!(spread([]), None);
    }

    #[test]
    fn one_wild_pair_does_not_move_the_median() {
        let calm = spread([0.8, 0.8, 0.8, 0.8, 0.8]).unwrap();
        let wild = spread([0.8, 0.8, 40.0, 0.8, 0.8]).unwrap();
        assert_eq!(calm.median, wild.median);
    }
}
