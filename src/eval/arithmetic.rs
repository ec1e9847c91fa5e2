//! Evaluates arithmetic expressions as Python does, without an interpreter: numbers, brackets, signs and `+ - * / //
//! **`. Integers stay exact up to 128 bits, so that large powers cancel exactly.

/// A value: Python's `int` or `float`.
#[derive(Clone, Copy, Debug)]
enum Number {
    Whole(i128),
    Real(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Open,
    Negate,
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Power,
}

/// The value of an expression; `None` if the text isn't an expression, divides by 0, or has a complex or infinite
/// value. Operators wait on an explicit stack, so that deep brackets can't overflow the program's stack.
pub fn evaluate(expression: &str) -> Option<f64> {
    let (mut values, mut operators) = (vec![], vec![]);
    let mut rest = expression.trim();
    let mut num_open = 0_usize;
    let mut wants_value = true;
    while let Some(c) = rest.chars().next() {
        let mut taken = 1;
        match c {
            ' ' | '\t' | '\x0c' => {}
            // An expression may continue on another line only within brackets.
            '\n' | '\r' if num_open > 0 => {}
            '0'..='9' | '.' if wants_value => {
                taken = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
                values.push(literal(&rest[..taken])?);
                wants_value = false;
            }
            '(' if wants_value => {
                operators.push(Operator::Open);
                num_open += 1;
            }
            '-' if wants_value => operators.push(Operator::Negate),
            '+' if wants_value => {}
            ')' if !wants_value => {
                num_open = num_open.checked_sub(1)?;
                while let Some(operator) = operators.pop().filter(|o| *o != Operator::Open) {
                    apply(operator, &mut values)?;
                }
            }
            _ if !wants_value => {
                let (operator, length) = binary(rest)?;
                taken = length;
                while operators.last().is_some_and(|before| before.binds_before(operator)) {
                    apply(operators.pop()?, &mut values)?;
                }
                operators.push(operator);
                wants_value = true;
            }
            _ => return None,
        }
        rest = &rest[taken..];
    }
    while let Some(operator) = operators.pop() {
        apply(operator, &mut values)?;
    }
    match values[..] {
        [value] if !wants_value => Some(value.as_real()).filter(|x| x.is_finite()),
        _ => None,
    }
}

/// Reads a number of digits, with or without a decimal point. An integer starts with 0 only if it is 0.
fn literal(text: &str) -> Option<Number> {
    let starts_badly = text.starts_with('0') && text.bytes().any(|b| b != b'0');
    match text.contains('.') {
        true => text.parse().ok().map(Number::Real),
        false => text.parse().ok().filter(|_| !starts_badly).map(Number::Whole),
    }
}

/// The operator at the start of a text, with its length.
fn binary(text: &str) -> Option<(Operator, usize)> {
    let known = [
        ("**", Operator::Power),
        ("//", Operator::FloorDivide),
        ("*", Operator::Multiply),
        ("/", Operator::Divide),
        ("+", Operator::Add),
        ("-", Operator::Subtract),
    ];
    known.iter().find(|(sign, _)| text.starts_with(sign)).map(|(sign, operator)| (*operator, sign.len()))
}

impl Operator {
    fn precedence(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Add | Self::Subtract => 1,
            Self::Multiply | Self::Divide | Self::FloorDivide => 2,
            Self::Negate => 3,
            Self::Power => 4,
        }
    }

    /// Whether the operator before another one takes the value between them; powers associate to the right.
    fn binds_before(self, next: Self) -> bool {
        self.precedence() > next.precedence() || (self.precedence() == next.precedence() && next != Self::Power)
    }
}

impl Number {
    fn as_real(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Real(x) => x,
        }
    }
}

fn apply(operator: Operator, values: &mut Vec<Number>) -> Option<()> {
    use Number::{Real, Whole};
    let right = values.pop()?;
    let value = match (operator, right) {
        (Operator::Negate, Whole(n)) => n.checked_neg().map_or(Real(-(n as f64)), Whole),
        (Operator::Negate, Real(x)) => Real(-x),
        _ => match (values.pop()?, right) {
            (Whole(a), Whole(b)) => of_whole(operator, a, b)?,
            (a, b) => Real(of_real(operator, a.as_real(), b.as_real())?),
        },
    };
    values.push(value);
    Some(())
}

/// Computes with integers: exact within 128 bits, in floating point beyond.
fn of_whole(operator: Operator, a: i128, b: i128) -> Option<Number> {
    let exact = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::FloorDivide => {
            let rounds_up = a.checked_rem(b).is_some_and(|remainder| remainder != 0) && (a < 0) != (b < 0);
            a.checked_div(b).map(|quotient| quotient - i128::from(rounds_up))
        }
        Operator::Power if b >= 0 => {
            let exact = u32::try_from(b).ok().and_then(|b| a.checked_pow(b));
            // This may be infinite where Python's integer is merely large.
            return Some(exact.map_or_else(|| Number::Real((a as f64).powf(b as f64)), Number::Whole));
        }
        _ => None,
    };
    exact.map(Number::Whole).or_else(|| of_real(operator, a as f64, b as f64).map(Number::Real))
}

fn of_real(operator: Operator, a: f64, b: f64) -> Option<f64> {
    match operator {
        Operator::Add => Some(a + b),
        Operator::Subtract => Some(a - b),
        Operator::Multiply => Some(a * b),
        Operator::Divide if b != 0.0 => Some(a / b),
        // (a - remainder) / b is an integer up to rounding. The floor of a / b would not always be Python's: 1 // 0.1
        // is 9.
        Operator::FloorDivide if b != 0.0 => {
            let remainder = a % b;
            let rounds_up = remainder != 0.0 && (remainder < 0.0) != (b < 0.0);
            Some(((a - remainder) / b).round() - f64::from(u8::from(rounds_up)))
        }
        // powf gives infinity for 0 to a negative power and NaN where Python's result is complex.
        Operator::Power => Some(a.powf(b)).filter(|x| x.is_finite()),
        _ => None,
    }
}
